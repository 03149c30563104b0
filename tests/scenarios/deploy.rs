//! The agent as it is deployed: under systemd, in a container, scraped by Prometheus.

pub(crate) mod debian;
pub(crate) mod prometheus;
