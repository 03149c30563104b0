//! Hints for arguments that were refused: those that were probably meant.

use std::path::Path;

use memcg_monitor::kernel::page_size;
use monitor_common::grammar::{
    control_file::{self, ControlFile, split_directory_args, split_exact},
    spec::Spec,
    threshold::parse_threshold,
};

/// The arguments that were probably meant, where these are refused for their form.
pub fn instead_of(path: &Path, file: Option<ControlFile>, args: &str) -> Option<String> {
    if path.is_dir() && split_directory_args(args.as_bytes()).is_none() {
        let file = file_for(args)?;
        return Some(format!("name the control file: {} {args}", path.join(file.name()).display()));
    }
    let file = file?;
    let is_good = |args: &str| {
        let (args, _) = split_exact(args.as_bytes());
        control_file::parse(file, args, page_size()).is_ok()
    };
    if is_good(args) {
        return None;
    }
    let better = match file {
        ControlFile::Pressure => as_level(args),
        ControlFile::Procs => return Some("leave the argument out".into()),
        _ => threshold(args)?,
    };
    is_good(&better).then(|| format!("write {better}"))
}

/// The specification of a watch that was probably meant, where this is none.
pub fn of_spec(text: &str) -> Option<String> {
    let is_good = |text: &String| Spec::parse(text.as_bytes(), page_size()).is_ok();
    let named = text.split_once(' ').filter(|(name, _)| ControlFile::from_name(name.as_bytes()).is_some());
    if let Some((name, args)) = named {
        return Some(format!("{name} {}", threshold(args)?)).filter(is_good);
    }
    let word = text.trim().to_ascii_lowercase();
    let level = as_level(text);
    [Some(word), Some(level), threshold(text)].into_iter().flatten().find(is_good)
}

/// A level of pressure and its mode in the grammar's own form.
fn as_level(text: &str) -> String {
    text.trim().to_ascii_lowercase().replace(", ", ",").replace(' ', ",")
}

/// The control file that arguments are for, by their form.
fn file_for(args: &str) -> Option<ControlFile> {
    let is_for = |file: &ControlFile| control_file::parse(*file, args.as_bytes(), page_size()).is_ok();
    [ControlFile::Usage, ControlFile::Pressure].into_iter().find(is_for)
}

/// A threshold in the grammar's own form: no spaces, one letter behind the number, no decimals.
fn threshold(args: &str) -> Option<String> {
    let args: String = args.chars().filter(|letter| !letter.is_whitespace() && *letter != '_').collect();
    let (level, options) = args.split_once(',').map_or((args.as_str(), None), |(a, b)| (a, Some(b)));
    let mut parts = vec![self::level(level)?];
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        let option = option.to_ascii_lowercase();
        match option.split_once('=') {
            Some((name, size)) => parts.push(format!("{name}={}", self::level(size)?)),
            None if option.is_empty() => {}
            None => parts.push(option),
        }
    }
    // Each option once.
    let mut seen = Vec::new();
    parts.retain(|part| {
        !seen.contains(part) && {
            seen.push(part.clone());
            true
        }
    });
    Some(parts.join(","))
}

/// `16MB`, `16MiB` as `16M`, `1.5G` as `1536M`.
fn level(text: &str) -> Option<String> {
    if text.ends_with('%') {
        let (whole, part) =
            text.trim_end_matches('%').split_once('.').unwrap_or((text.trim_end_matches('%'), ""));
        let part = part.get(..2).unwrap_or(part);
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        return Some(if part.is_empty() { format!("{whole}%") } else { format!("{whole}.{part}%") });
    }
    if parse_threshold(text.as_bytes(), page_size()).is_ok() {
        return Some(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let Some((whole, rest)) = short.split_once('.') else { return Some(short.to_owned()) };
    let letters = "KMGTPE";
    let suffix = rest.chars().last().filter(|letter| letters.contains(*letter))?;
    let part: f64 = format!("0.{}", rest.strip_suffix(suffix)?).parse().ok()?;
    let smaller = letters.chars().nth(letters.find(suffix)?.checked_sub(1)?)?;
    let whole: u64 = whole.parse().ok()?;
    Some(format!("{}{smaller}", whole.checked_mul(1024)?.checked_add((part * 1024.0).round() as u64)?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use monitor_common::grammar::control_file::ControlFile;

    use super::instead_of;

    fn hint(file: ControlFile, args: &str) -> Option<String> {
        instead_of(Path::new("/g/x"), Some(file), args)
    }

    #[test]
    fn sizes_as_people_write_them_are_corrected() {
        for (given, better) in [
            ("16MB", "16M"),
            ("16 MiB", "16M"),
            ("16 M", "16M"),
            ("1.5G", "1536M"),
            ("1_000", "1000"),
            ("1M,UP", "1M,up"),
            ("1M, up", "1M,up"),
            ("1M,up,up", "1M,up"),
            ("80 %", "80%"),
            ("010%", "10%"),
            ("5.123%", "5.12%"),
            ("1M,hysteresis=64KB", "1M,hysteresis=64K"),
        ] {
            assert_eq!(hint(ControlFile::Usage, given), Some(format!("write {better}")), "{given}");
        }
        for given in ["max", "101%", "up", "16M", "", "1M,exact", "1M,sideways", "1.5"] {
            assert_eq!(hint(ControlFile::Usage, given), None, "{given}");
        }
    }

    #[test]
    fn levels_of_pressure_are_corrected() {
        for given in ["LOW,Local", "low, local", "low local"] {
            assert_eq!(hint(ControlFile::Pressure, given).as_deref(), Some("write low,local"), "{given}");
        }
        assert_eq!(hint(ControlFile::Pressure, "high"), None);
        assert_eq!(hint(ControlFile::Procs, "1").as_deref(), Some("leave the argument out"));
    }

    #[test]
    fn a_directory_alone_needs_a_control_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let hint = |args| instead_of(directory.path(), None, args);
        assert!(hint("1M").is_some_and(|text| text.ends_with("/memory.usage_in_bytes 1M")));
        assert!(hint("low").is_some_and(|text| text.ends_with("/memory.pressure_level low")));
        assert_eq!(hint("memory.oom_control"), None);
    }
}
