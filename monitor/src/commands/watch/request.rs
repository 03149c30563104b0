//! The words in which a request for a watch is refused before an agent is asked, with what to write instead.

use memcg_monitor::kernel::page_size;
use monitor_client::wire::WatchRequest;
use monitor_common::grammar::watch::{self, WatchError};

use crate::commands::listen::hints;

/// A word of the command line or of a rule that is wrong, the reason, and what to write instead.
pub fn explained(error: &WatchError<'_>) -> String {
    let text = error.text();
    if matches!(error, WatchError::Spec(..)) {
        if let Some(better) = hints::of_spec(text) {
            return format!("{text:?} is nothing that is told; write {better}");
        }
        if let Some(words) = several(text) {
            let words = words.join(", ");
            return format!(
                "{text:?} is several specifications; give each by itself (in a rule, a line for each): {words}"
            );
        }
    }
    if text.is_empty() { error.to_string() } else { format!("{text:?}: {error}") }
}

/// The words of a text, where there are more than one and each is a specification by itself.
fn several(text: &str) -> Option<Vec<&str>> {
    let words: Vec<_> = text.split([' ', '\t', ',']).filter(|word| !word.is_empty()).collect();
    let are_specs = words.iter().all(|word| watch::spec(word, page_size()).is_ok());
    (words.len() > 1 && are_specs).then_some(words)
}

/// All that an agent would refuse about a request as `EINVAL`.
pub fn errors(request: &WatchRequest) -> Vec<String> {
    let WatchRequest { patterns, units, specs, .. } = request;
    watch::errors((patterns.as_slice(), units.as_slice()), specs, page_size())
        .map(|error| explained(&error))
        .collect()
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::WatchRequest;

    use super::errors;

    fn of(patterns: &[&str], units: &[&str], specs: &[&str]) -> Vec<String> {
        let [patterns, units, specs] =
            [patterns, units, specs].map(|texts| texts.iter().map(|text| (*text).to_owned()).collect());
        errors(&WatchRequest { patterns, units, specs, again: false })
    }

    #[test]
    fn all_that_the_agent_would_refuse_is_refused_with_a_remedy() {
        assert_eq!(of(&["/", "/a/[bc]/**"], &["a-[0-9]"], &["1M"; 16]), [""; 0]);
        let specs = ["16MB", "OOM", "low local", "often", "memory.anon_bytes 1.5G", "oom removed", "1G,oom"];
        let wrong = of(&["/a/***", "b"], &["["], &specs);
        assert_eq!(wrong.len(), 10, "{wrong:?}");
        for (wrong, part) in wrong.iter().zip([
            "\"/a/***\": no pattern of paths",
            "\"b\": no pattern of paths: a pattern of paths begins with /",
            "\"[\": no pattern of units",
            "\"16MB\" is nothing that is told; write 16M",
            "write oom",
            "write low,local",
            "\"often\": nothing that is told; write a threshold",
            "write memory.anon_bytes 1536M",
            "\"oom removed\" is several specifications; give each by itself (in a rule, a line for each): oom, removed",
            "a line for each): 1G, oom",
        ]) {
            assert!(wrong.contains(part), "{wrong}: {part}");
        }
        assert!(of(&[], &[], &["oom"])[0].contains("/system.slice/**"));
        assert!(of(&["/a"], &[], &[])[0].contains("80%"));
        assert!(of(&["/a"], &[], &["1M"; 17])[0].contains("17 specifications"));
    }
}
