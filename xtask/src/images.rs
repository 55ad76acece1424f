//! The images of tests and demo, made from Debian's packages, so that everything runs where no public registry is reached.
//!
//! `target/images/<name>.tar` is a docker-save archive with one layer. `debian`, `ubuntu` and `centos` stand for "some
//! distribution with a shell": all three hold Debian's packages, under the names that the manifests use.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde_json::json;

use crate::sh::{self, output, run};

/// What goes into an image, besides what its packages hold.
struct Recipe {
    file: &'static str,
    names: &'static [&'static str],
    packages: &'static [&'static str],
    /// Whether busybox provides the commands that no package does.
    busybox: bool,
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
    environment: &'static [&'static str],
    stop_signal: Option<&'static str>,
    /// Files of the image's own: path, mode, text.
    files: &'static [(&'static str, u32, &'static str)],
    directories: &'static [&'static str],
    /// What is removed from the packages: documentation and what no container runs.
    removed: &'static [&'static str],
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\npostgres:x:999:999:postgres:/var/lib/postgresql:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\npostgres:x:999:\nnogroup:x:65534:\n";

const BUSYBOX: Recipe = Recipe {
    file: "busybox",
    names: &["busybox:latest", "busybox:1.28"],
    packages: &["busybox-static"],
    busybox: true,
    entrypoint: &[],
    command: &["sh"],
    environment: &[PATH],
    stop_signal: None,
    files: &[],
    directories: &[],
    removed: &["usr/share"],
};

/// What keeps a sandbox's namespaces where another runtime makes them.
const PAUSE: Recipe = Recipe {
    file: "pause",
    names: &["pause:latest"],
    packages: &["busybox-static"],
    busybox: true,
    entrypoint: &[],
    command: &["sleep", "2147483647"],
    environment: &[PATH],
    stop_signal: None,
    files: &[],
    directories: &[],
    removed: &["usr/share"],
};

const NGINX: Recipe = Recipe {
    file: "nginx",
    names: &["nginx:latest"],
    packages: &["nginx", "nginx-common", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "busybox-static"],
    busybox: true,
    entrypoint: &[],
    command: &["nginx", "-g", "daemon off;"],
    environment: &[PATH],
    stop_signal: Some("SIGQUIT"),
    files: &[("etc/nginx/nginx.conf", 0o644, include_str!("images/nginx.conf"))],
    directories: &["var/log/nginx", "var/lib/nginx/body", "var/cache/nginx", "run"],
    removed: &[
        "usr/share/doc",
        "usr/share/man",
        "usr/share/lintian",
        "usr/lib/x86_64-linux-gnu/gconv",
        "usr/share/vim",
    ],
};

const DEBIAN: Recipe = Recipe {
    file: "debian",
    names: &["debian:latest", "ubuntu:latest", "centos:latest"],
    packages: &[
        "base-files",
        "bash",
        "coreutils",
        "dash",
        "findutils",
        "grep",
        "gzip",
        "hostname",
        "libacl1",
        "libattr1",
        "libc-bin",
        "libc6",
        "libgmp10",
        "libpcre2-8-0",
        "libselinux1",
        "libssl3",
        "libtinfo6",
        "sed",
        "tar",
    ],
    busybox: false,
    entrypoint: &[],
    command: &["bash"],
    environment: &[PATH],
    stop_signal: None,
    files: &[],
    directories: &["run"],
    removed: &[
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "usr/lib/x86_64-linux-gnu/gconv",
    ],
};

const SAMPLE: Recipe = Recipe {
    file: "sample",
    names: &["geektime/sample:v2"],
    packages: &["busybox-static"],
    busybox: true,
    entrypoint: &[],
    command: &["sh"],
    environment: &[PATH],
    stop_signal: None,
    files: &[],
    directories: &["app"],
    removed: &["usr/share"],
};

const TOMCAT: Recipe = Recipe {
    file: "tomcat",
    names: &["geektime/tomcat:7.0"],
    packages: &[
        "busybox-static",
        "libc6",
        "libeclipse-jdt-core-java",
        "libgcc-s1",
        "libstdc++6",
        "libtomcat10-java",
        "openjdk-17-jre-headless",
        "tomcat10-common",
        "zlib1g",
    ],
    busybox: true,
    entrypoint: &[],
    command: &["sh", "-c", "/root/apache-tomcat-7.0.42-v2/bin/start.sh"],
    environment: &[PATH, "JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64"],
    stop_signal: None,
    files: &[
        ("root/apache-tomcat-7.0.42-v2/bin/start.sh", 0o755, include_str!("images/start.sh")),
        ("root/apache-tomcat-7.0.42-v2/conf/server.xml", 0o644, include_str!("images/server.xml")),
        ("root/apache-tomcat-7.0.42-v2/conf/web.xml", 0o644, include_str!("images/web.xml")),
    ],
    directories: &[
        "root/apache-tomcat-7.0.42-v2/webapps",
        "root/apache-tomcat-7.0.42-v2/logs",
        "root/apache-tomcat-7.0.42-v2/temp",
        "root/apache-tomcat-7.0.42-v2/work",
    ],
    removed: &["usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/lib/x86_64-linux-gnu/gconv"],
};

/// A database as its official image is used: the data directory is made at the first start, by the user that the Pod names.
const POSTGRES: Recipe = Recipe {
    file: "postgres",
    names: &["postgres:15"],
    packages: &[
        "busybox-static",
        "libaudit1",
        "libc6",
        "libcap-ng0",
        "libcap2",
        "libcom-err2",
        "libcrypt1",
        "libffi8",
        "libgcc-s1",
        "libgcrypt20",
        "libgmp10",
        "libgnutls30",
        "libgpg-error0",
        "libgssapi-krb5-2",
        "libhogweed6",
        "libicu72",
        "libidn2-0",
        "libk5crypto3",
        "libkeyutils1",
        "libkrb5-3",
        "libkrb5support0",
        "libldap-2.5-0",
        "liblz4-1",
        "liblzma5",
        "libnettle8",
        "libp11-kit0",
        "libpam0g",
        "libpq5",
        "libreadline8",
        "libsasl2-2",
        "libssl3",
        "libstdc++6",
        "libsystemd0",
        "libtasn1-6",
        "libtinfo6",
        "libunistring2",
        "libxml2",
        "libzstd1",
        "postgresql-15",
        "postgresql-client-15",
        "tzdata",
        "zlib1g",
    ],
    busybox: true,
    entrypoint: &["/usr/local/bin/entrypoint.sh"],
    command: &["postgres"],
    environment: &[
        "PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PGDATA=/var/lib/postgresql/data",
    ],
    stop_signal: Some("SIGINT"),
    files: &[("usr/local/bin/entrypoint.sh", 0o755, include_str!("images/postgres.sh"))],
    directories: &["var/lib/postgresql/data", "run"],
    removed: &[
        "usr/share/doc",
        "usr/share/man",
        "usr/share/lintian",
        "usr/share/locale",
        "usr/lib/postgresql/15/lib/bitcode",
        "usr/lib/x86_64-linux-gnu/gconv",
    ],
};

const RECIPES: &[&Recipe] = &[&BUSYBOX, &PAUSE, &NGINX, &DEBIAN, &SAMPLE, &TOMCAT, &POSTGRES];

/// Makes the images named in `only`, or all of them, and returns where each archive is.
///
/// An archive that was made from the same recipe is kept.
pub(crate) fn build(only: &[String]) -> Result<BTreeMap<&'static str, PathBuf>> {
    if let Some(unknown) = only.iter().find(|name| !RECIPES.iter().any(|recipe| recipe.file == name.as_str())) {
        bail!(
            "no image is called {unknown}; there are {:?}",
            RECIPES.iter().map(|recipe| recipe.file).collect::<Vec<_>>()
        );
    }
    let root = sh::workspace()?.join("target/images");
    fs::create_dir_all(root.join("debs"))?;
    let mut made = BTreeMap::new();
    for recipe in RECIPES.iter().filter(|recipe| only.is_empty() || only.iter().any(|name| name == recipe.file)) {
        made.insert(recipe.file, recipe.build(&root).with_context(|| format!("make the image {}", recipe.file))?);
    }
    Ok(made)
}

impl Recipe {
    fn build(&self, root: &Path) -> Result<PathBuf> {
        let archive = root.join(format!("{}.tar", self.file));
        let stamp = root.join(format!("{}.recipe", self.file));
        let fingerprint = self.fingerprint();
        if archive.exists() && stamp.exists() && fs::read_to_string(&stamp)? == fingerprint {
            return Ok(archive);
        }
        sh::say(&format!("image {}: {}", self.file, self.packages.join(" ")));
        let staging = root.join(format!("{}.staging", self.file));
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        let rootfs = staging.join("rootfs");
        fs::create_dir_all(&rootfs)?;
        self.unpack_packages(&root.join("debs"), &rootfs)?;
        self.write_files(&rootfs)?;
        if self.busybox {
            link_applets(&rootfs)?;
        }
        self.pack(&staging, &archive)?;
        fs::remove_dir_all(&staging)?;
        fs::write(&stamp, fingerprint)?;
        Ok(archive)
    }

    /// Changes with everything that goes into the image but the packages' versions.
    fn fingerprint(&self) -> String {
        format!(
            "4\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n",
            self.names,
            self.packages,
            self.entrypoint,
            self.command,
            self.environment,
            self.files,
            self.directories,
            self.removed
        )
    }

    fn unpack_packages(&self, debs: &Path, rootfs: &Path) -> Result<()> {
        // A merged /usr, as Debian's own installer makes it, so that packages of either layout meet.
        for directory in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(rootfs.join("usr").join(directory))?;
            symlink(format!("usr/{directory}"), rootfs.join(directory))?;
        }
        for package in self.packages {
            let deb = fetch(debs, package)?;
            // dpkg-deb would replace the links above by the package's directories: tar follows them when told to.
            run(std::process::Command::new("sh")
                .arg("-c")
                .arg("dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink -C \"$2\"")
                .args(["sh".as_ref(), deb.as_os_str(), rootfs.as_os_str()]))?;
        }
        for path in self.removed {
            let path = rootfs.join(path);
            if path.exists() {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    fn write_files(&self, rootfs: &Path) -> Result<()> {
        for directory in ["dev", "proc", "sys", "etc", "root", "tmp", "var/tmp"].iter().chain(self.directories) {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        for directory in ["tmp", "var/tmp"] {
            fs::set_permissions(rootfs.join(directory), PermissionsExt::from_mode(0o1777))?;
        }
        let accounts = [("etc/passwd", 0o644, PASSWD), ("etc/group", 0o644, GROUP)];
        for (path, mode, text) in accounts.iter().chain(self.files) {
            let path = rootfs.join(path);
            fs::create_dir_all(path.parent().context("a file of an image lies in a directory")?)?;
            fs::write(&path, text)?;
            fs::set_permissions(&path, PermissionsExt::from_mode(*mode))?;
        }
        if self.file == "sample" {
            fs::write(rootfs.join("sample.war"), crate::war::sample()?)?;
        }
        Ok(())
    }

    /// Writes the docker-save archive: the layer, the configuration and `manifest.json`.
    fn pack(&self, staging: &Path, archive: &Path) -> Result<()> {
        let layer = staging.join("layer.tar");
        run(std::process::Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--format=pax"])
            .args(["--pax-option=delete=atime,delete=ctime", "-cf"])
            .arg(&layer)
            .arg("-C")
            .arg(staging.join("rootfs"))
            .arg("."))?;
        let digest = sha256(&layer)?;
        let mut container = json!({ "Env": self.environment, "Cmd": self.command, "WorkingDir": "/" });
        if !self.entrypoint.is_empty() {
            container["Entrypoint"] = json!(self.entrypoint);
        }
        if let Some(signal) = self.stop_signal {
            container["StopSignal"] = json!(signal);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z", "config": container,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask images" }],
        });
        fs::write(staging.join("config.json"), serde_json::to_vec(&config)?)?;
        let config_name = format!("{}.json", sha256(&staging.join("config.json"))?);
        fs::rename(staging.join("config.json"), staging.join(&config_name))?;
        let manifest = json!([{ "Config": config_name, "RepoTags": self.names, "Layers": ["layer.tar"] }]);
        fs::write(staging.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
        let partial = staging.join("archive.tar");
        run(std::process::Command::new("tar").arg("-cf").arg(&partial).arg("-C").arg(staging).args([
            "manifest.json",
            &config_name,
            "layer.tar",
        ]))?;
        fs::rename(partial, archive)?;
        Ok(())
    }
}

/// The package's file, downloaded with apt unless it is there.
fn fetch(debs: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let find = || -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(debs)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(&prefix) && name.to_string_lossy().ends_with(".deb") {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    };
    if let Some(path) = find()? {
        return Ok(path);
    }
    run(std::process::Command::new("apt-get")
        .args(["-o", "APT::Sandbox::User=root", "download", "-qq", package])
        .current_dir(debs))?;
    find()?.with_context(|| format!("apt-get download {package} left no file"))
}

/// Links every busybox applet that no package provides.
fn link_applets(rootfs: &Path) -> Result<()> {
    let busybox = rootfs.join("bin/busybox");
    for applet in output(std::process::Command::new(&busybox).arg("--list-full"))?.lines() {
        let name = Path::new(applet).file_name().context("busybox lists an applet without a name")?;
        let places = ["usr/bin", "usr/sbin", "usr/local/bin"];
        if name != "busybox" && !places.iter().any(|place| rootfs.join(place).join(name).exists()) {
            symlink("/bin/busybox", rootfs.join("usr/bin").join(name))?;
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let line = output(std::process::Command::new("sha256sum").arg(path))?;
    Ok(line.split_whitespace().next().context("sha256sum prints a digest")?.to_owned())
}
