//! Tables of what was measured.

use serde_json::Value;

use super::data::{Data, Piece, Row};

/// All tables in the order in which they first appear, each with its kernels'
/// rows one after the other.
pub(crate) fn tables(data: &[Data]) -> String {
    let rows: Vec<(&str, &Row)> = data
        .iter()
        .filter_map(|data| match &data.piece {
            Piece::Row(row) => Some((data.kernel.as_str(), row)),
            _ => None,
        })
        .collect();
    let mut titles: Vec<(&str, &str)> = Vec::new();
    for (kernel, row) in &rows {
        if !titles.contains(&(kernel, row.table.as_str())) {
            titles.push((kernel, &row.table));
        }
    }
    let mut text = String::new();
    for (kernel, title) in titles {
        let rows = rows.iter().filter(|(on, row)| *on == kernel && row.table == title).map(|(_, row)| *row);
        text += &format!("{title}, {kernel}\n{}\n\n", table(&rows.collect::<Vec<_>>()));
    }
    text.trim_end().to_owned() + "\n"
}

/// The rows under the columns in the order in which they first appear.
fn table(rows: &[&Row]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_the_order_of_the_guest() {
        let lines = [
            r#"{"table": "faults", "row": "without agent", "columns": [["per fault", 9000], ["added", ""]]}"#,
            r#"{"table": "faults", "row": "with agent", "columns": [["per fault", 9040], ["added", "0.44 %"], ["runs", 1.5]]}"#,
            r#"{"plot": "faults", "y": "%", "bars": [["with agent", 0.44]]}"#,
        ];
        let mut data: Vec<Data> =
            lines.iter().map(|line| serde_json::from_str(line).expect("data")).collect();
        data.iter_mut().for_each(|data| data.kernel = "6.1".to_owned());
        assert_eq!(
            tables(&data),
            "faults, 6.1\n\
             \x20              per fault   added  runs\n\
             without agent       9000\n\
             with agent          9040  0.44 %   1.5\n"
        );
    }
}
