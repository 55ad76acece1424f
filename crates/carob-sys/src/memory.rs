//! The memory of this process.

use std::io;

/// Gives back to the kernel what the allocator holds free, in all its arenas (malloc_trim(3)); true if that was anything.
/// Allocations of other threads wait meanwhile: some milliseconds for a hundred megabytes.
pub fn release_free() -> bool {
    // SAFETY: malloc_trim takes the allocator's own locks and touches none of its allocated blocks.
    unsafe { libc::malloc_trim(0) == 1 }
}

/// Takes the pages of the program itself out of this process: code that is needed comes back with its next use, from the page
/// cache (madvise(2), `MADV_DONTNEED`), sixteen pages per fault. What a start alone used stays away, and the kernel may drop it.
///
/// Only segments that nobody can write to: what is in the others would be lost.
pub fn release_program() -> io::Result<()> {
    let mut outcome = Ok(());
    // SAFETY: `release_segments` has the type that is asked for, and `outcome` outlives the call, which is over when this returns.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), (&raw mut outcome).cast()) };
    outcome
}

/// Releases what may be released of one loaded object; ends the walk where that fails.
#[expect(clippy::cast_possible_truncation, reason = "addresses and lengths of memory that this process has")]
unsafe extern "C" fn release_segments(
    info: *mut libc::dl_phdr_info,
    _: usize,
    outcome: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller passes a valid object for the time of this call (dl_iterate_phdr(3)).
    let info = unsafe { &*info };
    // SAFETY: as above; the array has that many headers. It is part of the object, and is only read.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let page = rustix::param::page_size();
    let is_fixed = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(is_fixed) {
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        let first = start - start % page;
        // The last page may hold the beginning of a segment that can be written to, so it stays.
        let length = (start + header.p_memsz as usize - first) / page * page;
        // SAFETY: the range lies within a private mapping of a file that this process never writes to, so every page of it
        // reads the same when it is mapped again. It was mapped by the loader and is never unmapped: shared objects stay.
        if unsafe { libc::madvise(first as *mut libc::c_void, length, libc::MADV_DONTNEED) } != 0 {
            // SAFETY: `release_program` passes its `outcome`, and waits.
            unsafe { *outcome.cast() = Err::<(), _>(io::Error::last_os_error()) };
            return 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        status_kib("RssAnon:")
    }

    fn status_kib(field: &str) -> u64 {
        let text = fs_err::read_to_string("/proc/self/status").expect("read");
        let line = text.lines().find(|line| line.starts_with(field)).expect("the field");
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

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let before = status_kib("RssFile:");
        release_program().expect("every segment can be released");
        let after = status_kib("RssFile:");
        assert!(after < before, "{after} KiB after {before} KiB");
        assert!(format!("{:?}", 1.5_f64).starts_with("1.5"));
    }
}
