//! `carob simulate`: schedulers side by side on virtual nodes.

use std::io::Write;

use anyhow::{Context, Result};
use carob_scheduler::sim::{Scenario, simulate};
use serde_json::Value;

use crate::cli::{Format, SimulateArgs};

/// `carob simulate SCENARIO`.
pub(crate) fn main(arguments: &SimulateArgs) -> Result<()> {
    let path = &arguments.scenario;
    let text = fs_err::read_to_string(path)?;
    let value: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("read the scenario {}", path.display()))?;
    let scenario = Scenario::parse(value).with_context(|| format!("read the scenario {}", path.display()))?;
    let report = simulate(&scenario);
    if let Some(path) = &arguments.svg {
        fs_err::write(path, report.svg())?;
    }
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Format::Text => write!(out, "{}", report.table())?,
        Format::Json => writeln!(out, "{:#}", report.json())?,
    }
    Ok(())
}
