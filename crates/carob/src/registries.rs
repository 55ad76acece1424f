//! `registries.yaml`: mirrors, credentials and TLS of image registries.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use carob_image::RegistriesConfig;

/// Read where no flag names another file.
const USUAL_PLACE: &str = "/etc/carob/registries.yaml";

/// Reads the file that a flag names, or the usual one if there is one. An unknown key is an error.
pub(crate) fn read(named: Option<&Path>) -> Result<RegistriesConfig> {
    let path = named.unwrap_or(Path::new(USUAL_PLACE));
    let text = match fs_err::read_to_string(path) {
        Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => return Ok(RegistriesConfig::default()),
        read => read?,
    };
    parse(&text).with_context(|| format!("read the registries in {}", path.display()))
}

fn parse(text: &str) -> Result<RegistriesConfig> {
    let config: Option<RegistriesConfig> = serde_saphyr::from_str(text)?;
    Ok(config.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_credentials_are_read() {
        let text = "mirrors:\n  docker.io:\n    endpoint: [https://m:5000]\nconfigs:\n  m:5000:\n    auth: {username: u, password: p}\n";
        let config = parse(text).expect("YAML");
        let mirror = config.mirrors["docker.io"].as_ref().expect("a mirror");
        assert_eq!(mirror.endpoints, ["https://m:5000"]);
        assert!(config.configs["m:5000"].as_ref().and_then(|access| access.auth.as_ref()).is_some());
        assert_eq!(parse("").expect("an empty file"), RegistriesConfig::default());
    }

    #[test]
    fn a_mistake_is_named_with_its_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs_err::write(file.path(), "mirors: {}").expect("written");
        let error = format!("{:#}", read(Some(file.path())).expect_err("refused"));
        assert!(error.contains("mirors") && error.contains(&file.path().display().to_string()), "{error}");
        let error = format!("{:#}", read(Some(Path::new("/nowhere/registries.yaml"))).expect_err("refused"));
        assert!(error.contains("/nowhere/registries.yaml"), "{error}");
    }
}
