//! The counter's own trace, made by kprobe events of the kernel: a witness that
//! shares nothing with our programs.
//!
//! A probe sees a counter before it is changed, so what a change crossed is
//! certain only if no other change ran beside it. Where one did, every value
//! that the others may have left counts: an upper bound.
//!
//! The kernel skips a probe where an interrupt comes upon another one's handler
//! and changes a counter itself, and counts that (`nmissed`). Such a change
//! shows as a gap between two calls, and is reckoned with as one.

mod probes;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};

use anyhow::{Context, Result, ensure};
use memcg_monitor::kernel::btf::Btf;

use self::probes::{CHANGES, LEVELS, Probes, TRY};
use crate::harness::group::Group;

/// The address of a group's memory counter in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Counter(u64);

/// A running trace; it ends with its value.
#[derive(Debug)]
pub(crate) struct Trace {
    pipe: File,
    _probes: Probes,
    memory_offset: u64,
    /// The counter file last read by each process, as a css address.
    css: HashMap<String, u64>,
    /// Calls that have not returned, innermost last, as indices into `calls`.
    running: HashMap<String, Vec<usize>>,
    calls: Vec<Call>,
    clock: usize,
    ledgers: HashMap<Counter, Ledger>,
    /// Calls that the probes missed, in all.
    missed: u64,
}

/// One call: a change of a counter and of all above it.
#[derive(Clone, Debug)]
struct Call {
    function: &'static str,
    /// Groups, each with the pages that it had when the call began.
    counters: Vec<(Counter, i64)>,
    change: i64,
    refused: bool,
    start: usize,
    /// `usize::MAX` while it runs.
    end: usize,
}

/// A counter's value by the trace, if that has every change of it.
#[derive(Debug, Default)]
struct Ledger {
    value: Option<i64>,
    running: u32,
    /// Changes since `running` was last 0, and how many there were.
    sum: i64,
    calls: u32,
    before: i64,
    gaps: Vec<Change>,
}

/// The calls of one leg.
#[derive(Debug)]
pub(crate) struct Leg {
    calls: Vec<Call>,
    gaps: Vec<(Counter, Change)>,
    /// Whether the probes missed any: nothing is certain then.
    pub(crate) missed: u64,
}

/// One change of one counter, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Lowest and highest value that it may have found.
    lo: i64,
    hi: i64,
    change: i64,
    refused: bool,
    /// Nothing else ran beside it.
    certain: bool,
}

impl Change {
    fn new(before: i64, change: i64) -> Self {
        Self { lo: before, hi: before, change, refused: false, certain: true }
    }

    /// Whether this change may have crossed `threshold`.
    fn may_cross(&self, threshold: i64) -> bool {
        // Exactly these values lie on the other side than what follows them.
        let (first, last) = if self.change > 0 {
            (threshold - self.change, threshold - 1)
        } else {
            (threshold, threshold - 1 - self.change)
        };
        self.lo.max(first) <= self.hi.min(last)
    }

    /// The value that it left, when nothing else ran beside it.
    pub(crate) fn left(&self) -> Option<i64> {
        (self.certain && !self.refused).then_some(self.lo + self.change)
    }

    /// `by` pages may have come or gone before it, in either direction.
    fn widen(&mut self, by: i64) {
        self.lo -= by;
        self.hi += by;
        self.certain = false;
    }
}

/// How often these changes of a counter may have crossed `threshold`.
pub(crate) fn most_crossings(changes: &[Change], threshold: i64) -> u64 {
    let (mut up, mut down) = (0, 0);
    for change in changes.iter().filter(|change| change.may_cross(threshold)) {
        // A refused charge is taken back: there and back again.
        up += u64::from(change.refused || change.change > 0);
        down += u64::from(change.refused || change.change < 0);
    }
    // One direction follows the other.
    (up + down).min(2 * up.min(down) + 1)
}

impl Leg {
    /// Every change of `counter`.
    pub(crate) fn changes(&self, counter: Counter) -> Vec<Change> {
        let before = |call: &Call| Some(call.counters.iter().find(|(found, _)| *found == counter)?.1);
        let (calls, mut changes): (Vec<_>, Vec<_>) = self
            .calls
            .iter()
            .filter_map(|call| {
                let mut change = Change::new(before(call)?, call.change);
                change.refused = call.refused;
                change.certain = self.missed == 0;
                Some((call, change))
            })
            .unzip();
        // In the order of their starts: those that run beside one follow it.
        for (first, call) in calls.iter().enumerate() {
            let beside =
                calls.iter().enumerate().skip(first + 1).take_while(|(_, other)| other.start < call.end);
            for (second, other) in beside {
                changes[first].widen(other.change.abs());
                changes[second].widen(call.change.abs());
            }
        }
        self.add_missed(counter, &mut changes);
        changes
    }

    /// A missed call shows later, as a gap. It came while another was looked at,
    /// so that one may have found a value that was old already.
    fn add_missed(&self, counter: Counter, changes: &mut Vec<Change>) {
        let gaps: Vec<_> = self.gaps.iter().filter(|(found, _)| *found == counter).collect();
        let pages = gaps.iter().map(|(_, gap)| gap.change.abs()).sum();
        if pages > 0 {
            changes.iter_mut().for_each(|change| change.widen(pages));
        }
        let lo = changes.iter().map(|change| change.lo).min().unwrap_or(0);
        let hi = changes.iter().map(|change| change.hi).max().unwrap_or(0);
        for (_, gap) in gaps {
            // Anywhere in the leg, and each of the calls missed may be in each gap.
            let anywhere = Change { lo, hi, ..*gap };
            changes.extend((0..self.missed.max(1)).map(|_| anywhere));
        }
    }
}

impl Trace {
    /// Puts the probes in.
    pub(crate) fn start() -> Result<Self> {
        let bytes = fs::read("/sys/kernel/btf/vmlinux").context("cannot read the kernel's BTF")?;
        let btf = Btf::parse(bytes)?;
        let offset = |name, path| btf.member_offset(name, path).map(u64::from);
        let probes = Probes::insert(offset("page_counter", "parent")?, offset("page_counter", "usage")?)?;
        let pipe = probes::pipe()?;
        Ok(Self {
            pipe,
            _probes: probes,
            memory_offset: offset("mem_cgroup", "memory")?,
            css: HashMap::new(),
            running: HashMap::new(),
            calls: Vec::new(),
            clock: 0,
            ledgers: HashMap::new(),
            missed: 0,
        })
    }

    /// The counter of a group, found by reading the group's usage.
    pub(crate) fn counter_of(&mut self, group: &Group) -> Result<Counter> {
        self.read()?;
        self.css.clear();
        group.usage()?;
        self.read()?;
        let ours = std::process::id().to_string();
        let css =
            self.css.get(&ours).with_context(|| format!("no trace of reading {}", group.path.display()))?;
        let counter = Counter(css + self.memory_offset);
        self.ledgers.insert(counter, Ledger::default());
        Ok(counter)
    }

    /// The calls since the last leg; those that still run also belong to the next.
    pub(crate) fn leg(&mut self) -> Result<Leg> {
        self.read()?;
        probes::ensure_whole()?;
        let calls = std::mem::take(&mut self.calls);
        for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.end == usize::MAX) {
            for place in self.running.values_mut().flatten().filter(|place| **place == index) {
                *place = self.calls.len();
            }
            self.calls.push(call.clone());
        }
        let missed = probes::missed()?;
        let mut leg = Leg { calls, gaps: Vec::new(), missed: missed - self.missed };
        self.missed = missed;
        for (counter, ledger) in &mut self.ledgers {
            leg.gaps.extend(ledger.gaps.drain(..).map(|gap| (*counter, gap)));
        }
        ensure!(leg.gaps.is_empty() || missed > 0, "changes are not in the trace: {:?}", leg.gaps);
        Ok(leg)
    }

    /// Takes in what the kernel has written since the last time.
    fn read(&mut self) -> Result<()> {
        let mut text = Vec::new();
        let mut block = vec![0; 1 << 16];
        loop {
            match self.pipe.read(&mut block) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&block[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the trace"),
            }
        }
        for line in String::from_utf8_lossy(&text).lines() {
            self.take(line).with_context(|| format!("trace line {line:?}"))?;
        }
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<()> {
        ensure!(!line.contains("LOST"), "the trace lost events");
        // `COMMAND-PID [CPU] FLAGS CLOCK: EVENT: (WHERE) NAME=VALUE...`; a
        // command may hold spaces.
        let (head, rest) = line.split_once(" [").context("no processor")?;
        let pid = head.rsplit('-').next().unwrap_or_default().trim_end();
        let (cpu, rest) = rest.split_once(']').context("no processor")?;
        let mut words = rest.split_whitespace();
        let flags = words.next().context("no flags")?;
        let event = words.nth(1).context("no event")?.trim_end_matches(':');
        // Idle processors share process 0; the third flag distinguishes interrupts from
        // the process that they interrupt.
        let context = flags.get(2..3).context("no third flag")?;
        let who = format!("{pid}{context}{}", if pid == "0" { cpu } else { "" });
        let field = |name: &str| {
            let value = rest.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.with_context(|| format!("no {name}"))
        };
        let number = |name: &str| -> Result<i64> {
            let value = field(name)?;
            Ok(match value.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16)?.cast_signed(),
                None => value.parse()?,
            })
        };
        self.clock += 1;
        if event == "usage_read" {
            self.css.insert(pid.to_owned(), number("css")?.cast_unsigned());
            return Ok(());
        }
        if let Some(function) = event.strip_suffix("_end") {
            let refused = function == TRY && number("returned")? == 0;
            self.end(&who, function, refused);
            return Ok(());
        }
        let (function, sign) = CHANGES.into_iter().find(|(name, _)| *name == event).context("unknown")?;
        let mut call = Call {
            function,
            counters: Vec::with_capacity(LEVELS),
            change: sign * number("pages")?,
            // Until it returns, all is possible.
            refused: function == TRY,
            start: self.clock,
            end: usize::MAX,
        };
        for level in 0..LEVELS {
            let counter = number(&format!("c{level}"))?.cast_unsigned();
            // Above the root nothing was fetched: what stands there is old.
            if counter == 0 {
                break;
            }
            call.counters.push((Counter(counter), number(&format!("u{level}"))?));
        }
        for (counter, before) in &call.counters {
            if let Some(ledger) = self.ledgers.get_mut(counter) {
                ledger.begin(*before);
            }
        }
        self.running.entry(who).or_default().push(self.calls.len());
        self.calls.push(call);
        Ok(())
    }

    /// Ends the innermost call of `function` by `who`, which returned.
    fn end(&mut self, who: &str, function: &str, refused: bool) {
        let running = self.running.entry(who.to_owned()).or_default();
        // None: it began before the trace did, or was missed.
        let Some(place) = running.iter().rposition(|index| self.calls[*index].function == function) else {
            return;
        };
        // Those further in have returned, too, unseen.
        for index in running.drain(place..) {
            let call = &mut self.calls[index];
            call.end = self.clock;
            call.refused = refused;
            let change = if call.refused { 0 } else { call.change };
            for (counter, _) in &call.counters {
                if let Some(ledger) = self.ledgers.get_mut(counter) {
                    ledger.end(change);
                }
            }
        }
    }
}

impl Ledger {
    fn begin(&mut self, before: i64) {
        if self.running == 0 {
            (self.sum, self.calls, self.before) = (0, 0, before);
        }
        self.running += 1;
        self.calls += 1;
    }

    fn end(&mut self, change: i64) {
        let Some(running) = self.running.checked_sub(1) else {
            return; // It began before the counter was known.
        };
        self.running = running;
        self.sum += change;
        if self.running > 0 {
            return;
        }
        // Nothing ran beside a single call, so what it found is exact.
        if self.calls == 1 {
            let expected = self.value.unwrap_or(self.before);
            if self.before != expected {
                let mut gap = Change::new(expected, self.before - expected);
                gap.certain = false;
                self.gaps.push(gap);
            }
            self.value = Some(self.before);
        }
        self.value = self.value.map(|value| value + self.sum);
    }
}
