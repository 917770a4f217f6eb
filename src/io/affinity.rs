//! Which cores there are for us, and pinning a thread to one.

/// How many cores this process may use, by affinity and by the quota of its cgroup (`cpu.max`, or
/// `cpu.cfs_quota_us` of version 1), rounded down; at least 1.
pub fn cores_usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The cores that this process may run on, whatever its quota; none if the system does not say.
pub fn cores() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// The core is not there, or not for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot pin a shard to core {core}: this process may use {usable}")]
pub struct PinError {
    core: usize,
    usable: String,
}

/// Binds the calling thread to `core`. Threads that it starts later are bound there too.
///
/// # Errors
/// If this process may not run there.
pub fn pin(core: usize) -> Result<(), PinError> {
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    let wanted = usable.iter().find(|id| id.id == core);
    if wanted.is_some_and(|id| core_affinity::set_for_current(*id)) {
        return Ok(());
    }
    let names: Vec<String> = usable.iter().map(|id| id.id.to_string()).collect();
    let usable = match names.len() {
        0 => "none that it knows of".to_owned(),
        1 => format!("core {}", names[0]),
        _ => format!("cores {}", names.join(", ")),
    };
    Err(PinError { core, usable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_a_core_that_there_is_and_to_no_other() {
        std::thread::spawn(|| {
            let cores = core_affinity::get_core_ids().unwrap();
            let last = cores.last().unwrap().id;
            pin(last).unwrap();
            assert_eq!(cores_usable(), 1);
            let left = core_affinity::get_core_ids().unwrap();
            assert_eq!(left.iter().map(|id| id.id).collect::<Vec<_>>(), [last]);
            let error = pin(1023).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("cannot pin a shard to core 1023: this process may use core {last}")
            );
        })
        .join()
        .unwrap();
    }
}
