//! The device filter of cgroup v2: a small BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE` that allows what is listed
//! and nothing else (kernel `Documentation/admin-guide/cgroup-v2.rst`, "Device controller").

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Which device files a rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    All,
    Char,
    Block,
}

/// Allows some ways of using some devices. `None` as a number means every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub kind: DeviceKind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl DeviceRule {
    /// All that can be done with any device: what a privileged container gets.
    pub const EVERYTHING: Self =
        Self { kind: DeviceKind::All, major: None, minor: None, read: true, write: true, mknod: true };
}

// Values of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

const ACCESS_MKNOD: u32 = 1;
const ACCESS_READ: u32 = 2;
const ACCESS_WRITE: u32 = 4;
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;

/// Offsets in `struct bpf_cgroup_dev_ctx`, whose `access_type` is `access << 16 | kind`.
const CONTEXT_ACCESS_TYPE: i16 = 0;
const CONTEXT_MAJOR: i16 = 4;
const CONTEXT_MINOR: i16 = 8;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_CONSTANT: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JUMP_IF_NOT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (source << 4) | destination, offset, immediate }
}

/// Registers: 1 the context, 2 the kind, 3 the access, 4 and 5 the numbers, 6 scratch.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, CONTEXT_ACCESS_TYPE, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, CONTEXT_MAJOR, 0),
        instruction(LOAD_WORD, 5, 1, CONTEXT_MINOR, 0),
    ];
    for rule in rules {
        code.extend(rule_block(rule));
        if *rule == DeviceRule::EVERYTHING {
            // Nothing gets past it, and the verifier refuses what cannot be reached.
            return code;
        }
    }
    code.extend([instruction(MOVE_CONSTANT, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

/// Tests one rule: falls through to the next block where it does not match, ends with 1 where it does.
fn rule_block(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests: Vec<Vec<Instruction>> = Vec::new();
    match rule.kind {
        DeviceKind::All => {}
        DeviceKind::Char => tests.push(vec![instruction(JUMP_IF_NOT, 2, 0, 0, DEVICE_CHAR)]),
        DeviceKind::Block => tests.push(vec![instruction(JUMP_IF_NOT, 2, 0, 0, DEVICE_BLOCK)]),
    }
    let ways = [(rule.mknod, ACCESS_MKNOD), (rule.read, ACCESS_READ), (rule.write, ACCESS_WRITE)];
    let allowed: u32 = ways.iter().filter(|way| way.0).map(|way| way.1).sum();
    if allowed != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // What is asked for beyond what is allowed must be nothing.
        let refused = (ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE) & !allowed;
        tests.push(vec![
            instruction(MOVE, 6, 3, 0, 0),
            instruction(AND, 6, 0, 0, refused.cast_signed()),
            instruction(JUMP_IF_NOT, 6, 0, 0, 0),
        ]);
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            tests.push(vec![instruction(JUMP_IF_NOT, register, 0, 0, number.cast_signed())]);
        }
    }
    let mut block: Vec<Instruction> = tests.concat();
    block.extend([instruction(MOVE_CONSTANT, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    let end = block.len();
    for (index, step) in block.iter_mut().enumerate() {
        if step.code == JUMP_IF_NOT {
            // A block is a dozen instructions long.
            step.offset = i16::try_from(end - index - 1).unwrap_or(i16::MAX);
        }
    }
    block
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads at the least.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Lets the processes of a v2 cgroup use the devices of `rules` only. A cgroup above may refuse more.
///
/// Needs `CAP_BPF` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN` (bpf(2)). The filter lives as long as the cgroup.
pub fn attach(cgroup_directory: impl AsFd, rules: &[DeviceRule]) -> io::Result<()> {
    let program = load(&program(rules))?;
    let attributes = AttachAttributes {
        target: cgroup_directory.as_fd().as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: both descriptors are open for the call, and the kernel reads no more than the size that is passed.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: count,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        program_flags: 0,
    };
    // SAFETY: the instructions and the licence outlive the call, which copies them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: bpf(2) has just made the descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for the instructions that are used here.
    fn allows(program: &[Instruction], kind: i32, access: u32, major: u32, minor: u32) -> bool {
        let mut registers = [0u32; 11];
        let context = [(access << 16) | kind.cast_unsigned(), major, minor];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 0xf), usize::from(step.registers >> 4));
            at += 1;
            match step.code {
                LOAD_WORD => registers[to] = context[usize::try_from(step.offset).expect("no negative offset") / 4],
                MOVE => registers[to] = registers[from],
                MOVE_CONSTANT => registers[to] = step.immediate.cast_unsigned(),
                AND => registers[to] &= step.immediate.cast_unsigned(),
                SHIFT_RIGHT => registers[to] >>= step.immediate,
                JUMP_IF_NOT if registers[to] != step.immediate.cast_unsigned() => {
                    at += usize::try_from(step.offset).expect("jumps go forward");
                }
                JUMP_IF_NOT => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        let null = DeviceRule {
            kind: DeviceKind::Char,
            major: Some(1),
            minor: Some(3),
            read: true,
            write: true,
            mknod: false,
        };
        let pts = DeviceRule { major: Some(136), minor: None, mknod: true, ..null };
        let mknod_any =
            DeviceRule { kind: DeviceKind::All, major: None, minor: None, read: false, write: false, mknod: true };
        let cases = [
            (vec![], DEVICE_CHAR, ACCESS_READ, (1, 3), false),
            (vec![null], DEVICE_CHAR, ACCESS_READ | ACCESS_WRITE, (1, 3), true),
            (vec![null], DEVICE_CHAR, ACCESS_MKNOD, (1, 3), false),
            (vec![null], DEVICE_CHAR, ACCESS_READ | ACCESS_MKNOD, (1, 3), false),
            (vec![null], DEVICE_CHAR, ACCESS_READ, (1, 5), false),
            (vec![null], DEVICE_BLOCK, ACCESS_READ, (1, 3), false),
            (vec![null, pts], DEVICE_CHAR, ACCESS_WRITE, (136, 7), true),
            (vec![null, pts], DEVICE_CHAR, ACCESS_WRITE, (137, 7), false),
            (vec![mknod_any], DEVICE_BLOCK, ACCESS_MKNOD, (254, 0), true),
            (vec![mknod_any], DEVICE_BLOCK, ACCESS_READ, (254, 0), false),
            (vec![DeviceRule::EVERYTHING], DEVICE_BLOCK, ACCESS_WRITE, (254, 0), true),
        ];
        for (rules, kind, access, (major, minor), expected) in cases {
            let code = program(&rules);
            assert_eq!(
                allows(&code, kind, access, major, minor),
                expected,
                "{rules:?} {kind} {access} {major}:{minor}"
            );
        }
    }

    #[test]
    fn the_kernel_takes_the_program() {
        let rule = DeviceRule { read: false, ..DeviceRule::EVERYTHING };
        load(&program(&[rule, DeviceRule::EVERYTHING])).expect("the verifier accepts it");
    }

    /// The unified tree of a hybrid machine has no controllers, but it takes filters.
    #[test]
    fn a_process_under_the_filter_opens_what_is_listed_only() {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};

        use crate::cgroup::{Cgroup, Layout};

        let mounts = crate::mountinfo::read().expect("a mount table");
        let unified = mounts.into_iter().find(|mount| mount.filesystem == "cgroup2").expect("a unified tree");
        let layout = Layout::V2 { root: unified.target };
        let group = Cgroup::new(&layout, format!("/carob-sys-devices-{}", std::process::id()));
        group.create().expect("root makes groups");
        let null = DeviceRule { kind: DeviceKind::Char, major: Some(1), minor: Some(3), ..DeviceRule::EVERYTHING };
        group.allow_devices(&[null]).expect("the filter is attached");
        let script = "read go; for device in null zero; do (: </dev/$device) 2>/dev/null && echo $device; done";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        group.add(rustix::process::Pid::from_child(&child)).expect("root moves processes");
        child.stdin.take().expect("piped").write_all(b"go\n").expect("the shell reads");
        let mut opened = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut opened).expect("the shell writes");
        child.wait().expect("ours");
        group.remove().expect("it is empty");
        assert_eq!(opened, "null\n");
    }
}
