//! Our signals beside those of the kernel's own `cgroup.event_control` (cgroup
//! v1), and both beside a trace of the counter. On cgroup v2 the trace is the
//! only witness.

mod book;
pub(crate) mod errno;
mod files;
pub(crate) mod grammar;
mod kinds;
mod lifetime;
mod rig;
mod schedule;
mod semantics;
mod shrink;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Group;
use crate::harness::random::Random;
use crate::harness::test::vm_test;
use rig::{Rig, STEP, Shape};

vm_test!(
    conformance_random_kinds,
    "a random schedule over all control files; the smallest failing part is printed",
    V1,
    [Oracle]
);
fn conformance_random_kinds() -> Result<()> {
    seeded(schedule::random)
}

vm_test!(conformance_shrinking, "a failing schedule is made as small as can be", V1, [Oracle]);
fn conformance_shrinking() -> Result<()> {
    shrink::finds_the_culprits()
}

vm_test!(conformance_ramps, "usage goes up and down: each signal of the kernel's is ours too", V1, [Oracle]);
fn conformance_ramps() -> Result<()> {
    let mut rig = Rig::new(vec![Group::new("ramps")?], &[0])?;
    rig.watch(0, 3)?;
    for kind in Kind::ALL {
        for steps in [1, 2] {
            rig.leg(&format!("{kind:?} up {steps}"), Shape::Ramp, |chargers| {
                chargers[0].grow(kind, steps * STEP)
            })?;
        }
        for _ in 0..2 {
            rig.leg(&format!("{kind:?} down"), Shape::Ramp, |chargers| chargers[0].shrink(kind))?;
        }
    }
    rig.report("conformance_ramps")
}

vm_test!(conformance_teeth, "usage goes to and fro within a wake-up", V1, [Oracle]);
fn conformance_teeth() -> Result<()> {
    let mut rig = Rig::new(vec![Group::new("teeth")?], &[0, 0, 0])?;
    rig.watch(0, 3)?;
    for kind in Kind::ALL {
        rig.leg(&format!("{kind:?} teeth"), Shape::Teeth, |chargers| chargers[0].spike(kind, 2 * STEP, 3))?;
        rig.leg(&format!("{kind:?} teeth"), Shape::Asleep, |chargers| chargers[0].spike(kind, 2 * STEP, 2))?;
        rig.leg(&format!("{kind:?} burst"), Shape::Burst, |chargers| {
            chargers.iter_mut().try_for_each(|charger| charger.begin_spike(kind, STEP, 3))?;
            chargers.iter_mut().try_for_each(Charger::finish)
        })?;
    }
    rig.leg("mixed burst", Shape::Burst, |chargers| {
        for (charger, kind) in chargers.iter_mut().zip(Kind::ALL) {
            charger.begin_spike(kind, STEP, 3)?;
        }
        chargers.iter_mut().try_for_each(Charger::finish)
    })?;
    rig.report("conformance_teeth")
}

/// Two groups side by side at the bottom of three levels, children first.
fn tree(name: &str) -> Result<Vec<Group>> {
    let top = Group::new(name)?;
    let middle = top.child("middle")?;
    let leaves = [middle.child("left")?, middle.child("right")?];
    Ok(leaves.into_iter().chain([middle, top]).collect())
}

vm_test!(
    conformance_deep,
    "thresholds on three levels, two groups and four processes at work below",
    V1,
    [Oracle]
);
fn conformance_deep() -> Result<()> {
    let mut rig = Rig::new(tree("deep")?, &[0, 0, 1, 1])?;
    for group in 0..4 {
        rig.watch(group, 2)?;
    }
    rig.leg("left up", Shape::Ramp, |chargers| chargers[0].grow(Kind::Anonymous, STEP))?;
    rig.leg("right up", Shape::Ramp, |chargers| chargers[2].grow(Kind::File, STEP))?;
    rig.leg("all burst", Shape::Burst, |chargers| {
        for (charger, kind) in chargers.iter_mut().zip(Kind::ALL.into_iter().cycle()) {
            charger.begin_spike(kind, STEP, 3)?;
        }
        chargers.iter_mut().try_for_each(Charger::finish)
    })?;
    rig.leg("left down", Shape::Ramp, |chargers| chargers[0].shrink(Kind::Anonymous))?;
    rig.leg("right teeth", Shape::Teeth, |chargers| chargers[3].spike(Kind::Kernel, STEP, 3))?;
    rig.leg("right down", Shape::Ramp, |chargers| chargers[2].shrink(Kind::File))?;
    rig.report("conformance_deep")
}

vm_test!(conformance_random, "a random schedule of all that", V1, [Oracle]);
fn conformance_random() -> Result<()> {
    seeded(usage_schedule)
}

fn seeded(run: impl FnOnce(u64) -> Result<()>) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let seed = now.as_secs() ^ u64::from(now.subsec_nanos()) << 32 | 1;
    run(seed).with_context(|| format!("seed {seed:#x}"))
}

fn usage_schedule(seed: u64) -> Result<()> {
    const LEGS: u32 = 40;
    const HELD: usize = 3;

    let mut random = Random(seed);
    let mut rig = Rig::new(tree("random")?, &[0, 0, 1])?;
    for (group, steps) in [(0, 4), (1, 3), (2, 4), (3, 5)] {
        rig.watch(group, steps)?;
    }
    // What each charger holds, last in first out for each kind.
    let mut held: Vec<Vec<Kind>> = vec![Vec::new(); rig.chargers.len()];
    for _ in 0..LEGS {
        let who = random.below(held.len());
        let kind = Kind::ALL[random.below(Kind::ALL.len())];
        let steps = 1 + random.below(2) as u64;
        match random.below(8) {
            0..3 if held[who].len() < HELD => {
                held[who].push(kind);
                let what = format!("charger {who} {kind:?} up {steps}");
                rig.leg(&what, Shape::Ramp, |chargers| chargers[who].grow(kind, steps * STEP))?;
            }
            0..5 if !held[who].is_empty() => {
                let kind = held[who].pop().context("checked just now")?;
                let what = format!("charger {who} {kind:?} down");
                rig.leg(&what, Shape::Ramp, |chargers| chargers[who].shrink(kind))?;
            }
            0..7 => {
                let what = format!("charger {who} {kind:?} teeth {steps}");
                rig.leg(&what, Shape::Teeth, |chargers| chargers[who].spike(kind, steps * STEP, 2))?;
            }
            _ => rig.leg("burst", Shape::Burst, |chargers| {
                for charger in &mut *chargers {
                    charger.begin_spike(Kind::ALL[random.below(Kind::ALL.len())], STEP, 2)?;
                }
                chargers.iter_mut().try_for_each(Charger::finish)
            })?,
        }
    }
    rig.report(&format!("conformance_random, seed {seed:#x}"))
}
