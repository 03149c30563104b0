//! The tests by theme, in the order in which they run.

pub(crate) mod abuse;
pub(crate) mod cli;
pub(crate) mod clients;
pub(crate) mod conformance;
pub(crate) mod deploy;
pub(crate) mod event;
pub(crate) mod faults;
pub(crate) mod host;
pub(crate) mod lifetime;
pub(crate) mod logs;
pub(crate) mod loss;
pub(crate) mod metrics;
pub(crate) mod restart;
pub(crate) mod threshold;
pub(crate) mod unprivileged;
pub(crate) mod view;

use crate::harness::runner::Test;

pub(crate) fn all() -> Vec<Test> {
    let mut tests = host::tests();
    tests.extend(threshold::tests());
    tests.extend(lifetime::tests());
    tests.extend(restart::tests());
    tests.extend(faults::tests());
    tests.extend(abuse::tests());
    tests.extend(abuse::clients::tests());
    tests.extend(unprivileged::tests());
    tests.extend(view::tests());
    tests.extend(event::tests());
    tests.extend(loss::tests());
    tests.extend(metrics::tests());
    tests.extend(logs::tests());
    tests.extend(cli::tests());
    tests.extend(conformance::tests());
    tests.extend(clients::tests());
    tests.extend(clients::examples::tests());
    tests
}
