//! A virtual machine with cgroup v2: a Debian kernel, carob, kubectl and busybox in an initramfs, under software emulation.
//!
//! The machine runs `tests/vm/smoke.sh` and `tests/vm/volumes.sh` (once per disk) and powers itself off; what its console prints is what this prints.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::sh::{self, output, run};

/// The package that depends on Debian's current kernel for virtual machines: small, and made for qemu's devices.
const KERNEL: &str = "linux-image-cloud-amd64";
/// The drivers that carob needs; depmod finds what they need in turn.
const MODULES: &[&str] = &[
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_fib_inet",
    "nft_reject_inet",
    "nft_redir",
    "nft_objref",
    "nft_limit",
    "nft_numgen",
    "nft_hash",
    "vxlan",
    "loop",
    "virtio_pci",
    "virtio_blk",
    "quota_v2",
    "xfs",
];
/// The line by which the guest says that its script succeeded.
const PASSED: &str = "CAROB-VM-PASSED";
const MEMORY_MIB: u32 = 2048;
/// The disks of the machine, as `/dev/vda` and so on: file systems that can limit projects, and how they are made.
const DISKS: [(&str, &[&str]); 2] =
    [("ext4", &["mkfs.ext4", "-q", "-F", "-O", "quota,project"]), ("xfs", &["mkfs.xfs", "-q", "-f"])];
/// xfs is not made smaller than 300 MiB.
const DISK_BYTES: u64 = 320 << 20;

const INIT: &str = include_str!("../../tests/vm/init.sh");

const SECOND: &str = include_str!("../../tests/vm/second.sh");

/// Boots the machine with `carob` in it and runs the smoke test.
pub(crate) fn smoke(carob: &Path) -> Result<()> {
    let root = sh::workspace()?;
    let dir = root.join("target/vm");
    fs::create_dir_all(&dir)?;
    let (kernel, version) = kernel(&dir)?;
    let images = crate::images::build(&["busybox".to_owned()])?;
    let scripts = [root.join("tests/vm/smoke.sh"), root.join("tests/vm/volumes.sh")];
    let initramfs = initramfs(&dir, &version, carob, &images["busybox"], &scripts)?;
    boot(&kernel, &initramfs, &disks(&dir)?)
}

/// Makes the disks.
fn disks(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut disks = Vec::new();
    for (name, command) in DISKS {
        let disk = dir.join(format!("{name}.disk"));
        fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        let [program, arguments @ ..] = command else { bail!("{name} has a command") };
        run(Command::new(program).args(arguments).arg(&disk))?;
        disks.push(disk);
    }
    Ok(disks)
}

/// Downloads and unpacks the kernel's package; returns the kernel's file and its version.
fn kernel(dir: &Path) -> Result<(PathBuf, String)> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("the kernel's package depends on a kernel")?;
    let version = package.strip_prefix("linux-image-").context("a kernel package is named by its version")?.to_owned();
    let unpacked = dir.join(package);
    let image = unpacked.join(format!("boot/vmlinuz-{version}"));
    if !image.exists() {
        sh::say(&format!("kernel {version}"));
        run(Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", "-qq", package])
            .current_dir(dir))?;
        let listing = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
        let deb = listing.iter().map(fs::DirEntry::path).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(package) && name.ends_with(".deb")
        });
        run(Command::new("dpkg-deb").arg("-x").arg(deb.context("apt-get download left no file")?).arg(&unpacked))?;
        run(Command::new("depmod").arg("-b").arg(&unpacked).arg(&version))?;
    }
    Ok((image, version))
}

/// Packs what the machine runs.
fn initramfs(dir: &Path, version: &str, carob: &Path, image: &Path, scripts: &[PathBuf]) -> Result<PathBuf> {
    let staging = dir.join("staging");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    for directory in ["bin", "etc", "lib", "opt", "usr/bin", "proc", "sys", "dev"] {
        fs::create_dir_all(staging.join(directory))?;
    }
    fs::copy("/bin/busybox", staging.join("bin/busybox"))?;
    for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", staging.join("bin").join(applet))?;
    }
    let kubectl = output(Command::new("sh").args(["-c", "readlink -f \"$(command -v kubectl)\""]))?;
    fs::copy(kubectl.trim(), staging.join("opt/kubectl"))?;
    fs::copy(carob, staging.join("opt/carob"))?;
    fs::copy(image, staging.join("opt/busybox.tar"))?;
    for script in scripts {
        fs::copy(script, staging.join("opt").join(script.file_name().context("a script has a name")?))?;
    }
    fs::write(staging.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(staging.join("etc/modules"), MODULES.join("\n"))?;
    for (name, text) in [("init", INIT), ("second", SECOND)] {
        fs::write(staging.join(name), text)?;
        fs::set_permissions(staging.join(name), PermissionsExt::from_mode(0o755))?;
    }
    copy_modules(dir, &staging, version)?;
    let archive = dir.join("initramfs.cpio");
    run(Command::new("sh")
        .args(["-c", "cd \"$1\" && find . -print0 | cpio --null --create --format=newc --quiet > \"$2\"", "sh"])
        .args([&staging, &archive]))?;
    Ok(archive)
}

/// Copies the modules that [`MODULES`] names with all that they need, and their index.
fn copy_modules(dir: &Path, staging: &Path, version: &str) -> Result<()> {
    let base = dir.join(format!("linux-image-{version}"));
    let tree = format!("lib/modules/{version}");
    fs::create_dir_all(staging.join(&tree))?;
    for entry in fs::read_dir(base.join(&tree))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            fs::copy(entry.path(), staging.join(&tree).join(entry.file_name()))?;
        }
    }
    let index = fs::read_to_string(base.join(&tree).join("modules.dep"))?;
    for module in MODULES {
        let suffix = format!("/{module}.ko:");
        // A module that is not in the index is built into the kernel.
        let Some(line) = index.lines().find(|line| line.split(' ').next().is_some_and(|file| file.ends_with(&suffix)))
        else {
            continue;
        };
        for file in line.split([':', ' ']).filter(|file| !file.is_empty()) {
            let target = staging.join(&tree).join(file);
            fs::create_dir_all(target.parent().context("a module lies in a directory")?)?;
            fs::copy(base.join(&tree).join(file), target)?;
        }
    }
    Ok(())
}

fn boot(kernel: &Path, initramfs: &Path, disks: &[PathBuf]) -> Result<()> {
    sh::say("boot a machine with cgroup v2");
    let mut machine = Command::new("setpriv")
        .args([
            "--pdeathsig=KILL",
            "--",
            "timeout",
            "--signal=KILL",
            "900",
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "2",
        ])
        .args([
            "-cpu",
            "max",
            "-m",
            &MEMORY_MIB.to_string(),
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(disks.iter().flat_map(|disk| {
            let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
            ["-drive".to_owned(), drive]
        }))
        .args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu-system-x86_64")?;
    let console = machine.stdout.take().context("the machine's console is piped")?;
    let mut passed = false;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        passed |= line == PASSED;
        sh::say(&format!("vm: {line}"));
    }
    let status = machine.wait()?;
    if !passed {
        bail!("the machine did not say {PASSED}; qemu ended with {status}");
    }
    Ok(())
}
