//! Looks at parsed YAML and JSON, where what is not there counts as empty.

use serde_json::Value;

/// The values of a list; none where there is no list.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
