//! `carob import`: a file of another tool as a Pod.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use carob_import::{Format, Options, TEXT_LEN_MAX};

use crate::cli::{ImportArgs, ImportFormat};

/// `carob import FILE`.
pub(crate) fn main(arguments: &ImportArgs) -> Result<()> {
    let path = &arguments.file;
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let format = match arguments.format {
        Some(ImportFormat::Supervisord) => Format::Supervisord,
        Some(ImportFormat::Procfile) => Format::Procfile,
        Some(ImportFormat::Compose) => Format::Compose,
        None => Format::of_name(&file_name)
            .with_context(|| format!("{} does not tell its format by its name: say --format", path.display()))?,
    };
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => directory_name(path).unwrap_or_else(|| "app".to_owned()),
    };
    let options = Options { name, image: arguments.image.clone() };
    let text = read(path)?;
    let imported =
        carob_import::import(format, &text, &options).with_context(|| format!("translate {}", path.display()))?;
    let yaml = imported.to_yaml().context("write the Pod as YAML")?;
    Ok(std::io::stdout().lock().write_all(yaml.as_bytes())?)
}

/// What the file lies in is what the whole is called, as compose has it.
fn directory_name(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    Some(path.parent()?.file_name()?.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let limit = TEXT_LEN_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text).context("read standard input")?;
    } else {
        let file = fs_err::File::open(path)?;
        file.take(limit).read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    }
    ensure!(text.len() <= TEXT_LEN_MAX, "{} has more than {TEXT_LEN_MAX} bytes", path.display());
    Ok(text)
}
