//! Room for the files that the sampled backend holds open, as far as the limit of descriptors allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a watched group takes: its directory, usage and peak; on v1 the notice of OOMs.
const OF_A_GROUP: u64 = 4;

/// Descriptors that are there for other use.
const BESIDE: u64 = 1024;

/// Raises `RLIMIT_NOFILE` for the files of `groups`, beside what it is for now. Returns how many groups it
/// allows, and logs that where it is fewer.
pub(super) fn make_room(groups: u32) -> u32 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return groups };
    let wanted = soft.saturating_add(u64::from(groups) * OF_A_GROUP);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return groups;
    }
    // Without CAP_SYS_RESOURCE, or above fs.nr_open.
    let most = hard.min(wanted);
    if most > soft
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, most, hard)
    {
        log::warn!("setrlimit RLIMIT_NOFILE: {errno}; the limit of {soft} descriptors stays (LimitNOFILE=)");
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    let fewer = fewer(limit, groups);
    if let Some(fewer) = fewer {
        log::warn!(
            "{limit} descriptors are allowed (ulimit -n, LimitNOFILE=), and each group that is watched takes up to \
             {OF_A_GROUP}: at most {fewer} groups can be watched, not the {groups} of --max-groups, and fewer where \
             many eventfds are registered"
        );
    }
    fewer.and_then(|fewer| u32::try_from(fewer).ok()).unwrap_or(groups)
}

/// The number of groups that `limit` descriptors are enough for, where that is less than `groups`.
fn fewer(limit: u64, groups: u32) -> Option<u64> {
    let most = limit.saturating_sub(BESIDE).max(limit / 2) / OF_A_GROUP;
    (most < u64::from(groups)).then_some(most)
}

#[cfg(test)]
mod tests {
    use super::fewer;

    #[test]
    fn a_limit_that_bounds_the_groups_is_found() {
        assert_eq!(fewer(4096, 1000), Some(768));
        assert_eq!(fewer(4096, 768), None);
        // Half of them at least: small limits are for small hosts.
        assert_eq!(fewer(1024, 1000), Some(128));
    }
}
