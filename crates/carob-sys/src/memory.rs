//! The memory of this process.

/// Gives back to the kernel what the allocator holds free, in all its arenas (malloc_trim(3)); true if that was anything.
/// Allocations of other threads wait meanwhile: some milliseconds for a hundred megabytes.
pub fn release_free() -> bool {
    // SAFETY: malloc_trim takes the allocator's own locks and touches none of its allocated blocks.
    unsafe { libc::malloc_trim(0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let text = fs_err::read_to_string("/proc/self/status").expect("read");
        let line = text.lines().find(|line| line.starts_with("RssAnon:")).expect("a line RssAnon");
        line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).expect("a number of KiB")
    }

    #[test]
    fn what_was_freed_goes_back() {
        const BLOCKS: usize = 64 * 1024;
        let before = resident_kib();
        let mut blocks: Vec<_> = (0..BLOCKS).map(|_| vec![7_u8; 512]).collect();
        // The last block stays, so that the allocator cannot shrink its heap from the end by itself.
        blocks.drain(..BLOCKS - 1);
        let freed = resident_kib();
        assert!(freed - before > 16 * 1024, "{freed} KiB after {before} KiB");
        assert!(release_free());
        assert!(resident_kib() < freed - 16 * 1024, "still {} KiB", resident_kib());
    }
}
