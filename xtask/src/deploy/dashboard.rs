//! The dashboard for Grafana: its queries, and that each names metrics and labels that there are.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

use super::json::list;
use crate::workspace::root;

const FILE: &str = "deploy/grafana/memcg-monitor.json";

/// Grafana's variables, with a value for each.
const VARIABLES: [(&str, &str); 3] = [("$__rate_interval", "20s"), ("$instance", ".*"), ("$id", ".*")];

pub(super) fn read() -> Result<Value> {
    let text = std::fs::read_to_string(root().join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
    serde_json::from_str(&text).with_context(|| format!("{FILE} is not JSON"))
}

/// Every query of the dashboard's panels, in their order, without variables.
pub(crate) fn queries() -> Result<Vec<String>> {
    let dashboard = read()?;
    let mut queries = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let text = target["expr"].as_str().context("a target without a query")?;
            let text = VARIABLES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
            queries.push(text);
        }
    }
    Ok(queries)
}

/// The queries as recording rules, by which promtool reads them.
pub(crate) fn recorded() -> Result<String> {
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, query) in queries()?.iter().enumerate() {
        writeln!(rules, "      - record: dashboard:{at}\n        expr: {}", Value::from(query.as_str()))?;
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Functions, operators and their words, which are neither metrics nor labels.
    const WORDS: [&str; 14] = [
        "sum",
        "count",
        "max",
        "topk",
        "rate",
        "increase",
        "histogram_quantile",
        "vector",
        "or",
        "by",
        "without",
        "on",
        "m",
        "h",
    ];

    /// Each metric of docs/reference/metrics.md, which a test of the agent's holds to the code, with
    /// its labels.
    fn metrics() -> BTreeMap<String, BTreeSet<String>> {
        let text = std::fs::read_to_string(root().join("docs/reference/metrics.md")).expect("the page");
        let mut metrics = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 6) {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let name = cells[1].trim_matches('`').to_owned();
            let mut labels: BTreeSet<_> =
                cells[4].split(", ").map(|label| label.trim_matches('`').to_owned()).collect();
            // Of the scrape.
            labels.extend(["job", "instance"].map(str::to_owned));
            if cells[2] == "histogram" {
                let of_buckets = labels.iter().cloned().chain(["le".to_owned()]).collect();
                metrics.insert(format!("{name}_bucket"), of_buckets);
            }
            metrics.insert(name, labels);
        }
        metrics.insert("up".to_owned(), ["job", "instance"].map(str::to_owned).into());
        metrics
    }

    /// The metrics of a query, and the labels that it names in braces or after `by` and `without`.
    fn names(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
        let mut rest = query;
        let (mut in_braces, mut in_list) = (false, false);
        while let Some(first) = rest.chars().next() {
            if first == '"' {
                let end = rest[1..].find('"').expect("a text ends") + 2;
                rest = &rest[end..];
                continue;
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            if length == 0 {
                match first {
                    '{' => in_braces = true,
                    '}' => in_braces = false,
                    ')' => in_list = false,
                    _ => {}
                }
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (name, after) = rest.split_at(length);
            rest = after;
            if in_braces || in_list {
                labels.insert(name.to_owned());
            } else if name == "by" || name == "without" {
                in_list = true;
            } else if !first.is_ascii_digit() && !WORDS.contains(&name) {
                metrics.insert(name.to_owned());
            }
        }
        (metrics, labels)
    }

    #[test]
    fn names_of_a_query_are_found() {
        let (metrics, labels) =
            names("topk(10, sum by (le) (rate(a_bucket{job=\"x y\", id=~\".*\"}[5m])) / b > 0)");
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!((metrics, labels), (set(&["a_bucket", "b"]), set(&["le", "job", "id"])));
    }

    #[test]
    fn each_query_names_metrics_and_labels_that_there_are() {
        let known = metrics();
        let dashboard = read().expect("a dashboard");
        let queries = queries().expect("queries");
        let variables =
            list(&dashboard["templating"]["list"]).filter_map(|variable| variable["definition"].as_str());
        // label_values(METRIC{...}, LABEL)
        let variables = variables.map(|text| {
            let inner = text.strip_prefix("label_values(").and_then(|text| text.strip_suffix(')'));
            let (metric, label) = inner.and_then(|inner| inner.rsplit_once(", ")).expect("a query of labels");
            format!("sum by ({label}) ({metric})")
        });
        let texts: Vec<_> = queries.iter().cloned().chain(variables).collect();
        assert!(texts.len() > 20, "{texts:?}");
        for text in texts {
            let (metrics, labels) = names(&text);
            assert!(!metrics.is_empty(), "{text}");
            for metric in &metrics {
                assert!(known.contains_key(metric), "there is no {metric}: {text}");
            }
            for label in &labels {
                let has_it = metrics.iter().any(|metric| known[metric].contains(label));
                assert!(has_it, "{metrics:?} have no label {label}: {text}");
            }
        }
    }

    #[test]
    fn panels_have_room_a_title_and_a_description() {
        let dashboard = read().expect("a dashboard");
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in list(&dashboard["panels"]) {
            assert!(ids.insert(panel["id"].as_u64()), "an id twice: {panel}");
            let side = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
            assert!(side("x") + side("w") <= 24, "beyond the edge: {panel}");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(taken.insert((x, y)), "two panels at {x}, {y}: {panel}");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{panel}");
            for target in list(&panel["targets"]) {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
                let text = target["expr"].as_str().expect("a query");
                assert!(text.contains("$instance"), "not of the chosen agent: {text}");
            }
        }
    }
}
