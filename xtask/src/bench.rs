//! `cargo xtask bench`: measures in the VM, where one instruction is one nanosecond.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernels;
use crate::qemu::Processors;
use crate::run::booting;
use crate::vm::{Boot, Hierarchy};
use crate::workspace::{short, target};
use crate::{build, setup};

#[derive(Debug, Subcommand)]
pub(crate) enum Arguments {
    /// Page faults in a group three levels deep, without the agent and with it
    Charge {
        /// Kernel to boot: 6.1, 6.12, 7.2 or the path of a vmlinuz
        #[arg(long, default_value = kernels::NEWEST, value_name = "KERNEL")]
        kernel: String,
    },
}

/// A data line of the guest: a row of the table.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    #[serde(deserialize_with = "in_order")]
    pub(crate) columns: Vec<(String, Value)>,
}

/// What is written under `target/bench`.
#[derive(Debug, Serialize)]
struct Results {
    kernel: String,
    rows: Vec<Value>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments::Charge { kernel } = arguments;
    let name = "charge";
    setup::ensure(&setup::vm(kernel))?;
    let guest = build::guest()?;
    let kernel = kernels::get(kernel)?;
    println!("{}, counting instructions", booting(&kernel, Hierarchy::V2));
    let boot = Boot {
        kernel: &kernel,
        hierarchy: Hierarchy::V2,
        mode: "bench",
        parameters: format!("guest.args={name}"),
        processors: Processors::Counted,
        limit: Duration::from_secs(30 * 60),
    };
    let report = boot.run(&guest, &mut |line| println!("{line}"))?;

    let parse = |line: &String| {
        serde_json::from_str(line).with_context(|| format!("cannot read the guest's `{line}`"))
    };
    let rows = report.data.iter().map(parse).collect::<Result<Vec<Row>>>()?;
    println!("\n{}", table(&rows));
    let values = report.data.iter().map(|line| Ok(serde_json::from_str(line)?));
    let results = Results { kernel: kernel.release.clone(), rows: values.collect::<Result<_>>()? };
    let folder = target().join("bench");
    let path = folder.join(format!("{name}.json"));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, serde_json::to_string_pretty(&results)? + "\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("also in {}", short(&path));
    ensure!(report.failed == 0, "the measurement failed");
    ensure!(!rows.is_empty(), "the guest measured nothing");
    Ok(())
}

/// The rows under the columns in the order in which they first appear.
fn table(rows: &[Row]) -> String {
    let mut heads: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.columns) {
        if !heads.contains(&name.as_str()) {
            heads.push(name);
        }
    }
    let mut lines = vec![std::iter::once("").chain(heads.iter().copied()).map(str::to_owned).collect()];
    for row in rows {
        let cell = |head: &&str| {
            let found = row.columns.iter().find(|(name, _)| name == head);
            found.map_or(String::new(), |(_, value)| shown(value))
        };
        let cells: Vec<String> = heads.iter().map(cell).collect();
        lines.push([vec![row.row.clone()], cells].concat());
    }
    let width = |column: usize| lines.iter().map(|line: &Vec<String>| line[column].len()).max();
    let widths: Vec<usize> = (0..=heads.len()).filter_map(width).collect();
    let lines: Vec<String> = lines
        .iter()
        .map(|line| {
            let cells = line.iter().zip(&widths).enumerate();
            let padded = cells.map(|(column, (cell, &width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Keeps the order in which the guest wrote the columns.
fn in_order<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Value)>, D::Error> {
    struct InOrder;
    impl<'de> Visitor<'de> for InOrder {
        type Value = Vec<(String, Value)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of columns")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut columns = Vec::new();
            while let Some(column) = map.next_entry()? {
                columns.push(column);
            }
            Ok(columns)
        }
    }
    from.deserialize_map(InOrder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_the_order_of_the_guest() {
        let lines = [
            r#"{"row": "without agent", "columns": {"per fault": 9000, "added": ""}}"#,
            r#"{"row": "with agent", "columns": {"per fault": 9040, "added": "0.44 %", "runs": 1.5}}"#,
        ];
        let rows: Vec<Row> = lines.iter().map(|line| serde_json::from_str(line).expect("a row")).collect();
        assert_eq!(
            table(&rows),
            "               per fault   added  runs\n\
             without agent       9000\n\
             with agent          9040  0.44 %   1.5"
        );
    }
}
