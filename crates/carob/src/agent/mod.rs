//! A machine that has joined a cluster: the parts of a server without its control plane.
//!
//! Start at [`Agent::start`]. Everything it says to the API it says in the name of its node, with the certificate that the
//! cluster has signed; what it keeps of the cluster is in [`files`].

mod certificates;
mod cluster;
mod files;
mod join;
pub(crate) mod token;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use carob_client::Informers;
use carob_kit::{Backoff, Clock, Health, Part, Supervisor};
use http::Uri;

use crate::cli::AgentArgs;
use crate::compose::{of_machine, prepare_directories};
use crate::config::{OfCluster, Settings, node_name};
use crate::parts::{self, Clients, Common, Machine};
use crate::{identity, pki, tls};
use certificates::Renewal;
use files::{Files, Kind};
use join::JoinError;
use token::JoinToken;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How long an agent that knows its cluster waits to be told of it again.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent whose parts run.
pub(crate) struct Agent {
    pub(crate) settings: Arc<Settings>,
    /// How the parts are.
    pub(crate) health: Arc<Health>,
    supervisor: Supervisor,
    machine: Arc<Machine>,
    /// Held as long as the agent runs: one a run directory.
    _lock: std::fs::File,
}

impl Agent {
    /// Joins, if that has not been done yet, and starts all parts. While the cluster cannot be reached it tries again, unless it
    /// has joined: then what it was told before counts.
    ///
    /// Cancel safe: what was reached is on disk.
    pub(crate) async fn start(arguments: AgentArgs, clock: Arc<dyn Clock>) -> Result<Self> {
        let data_dir = std::path::absolute(&arguments.directories.data_dir)?;
        let lock = prepare_directories(&data_dir, &std::path::absolute(&arguments.directories.run_dir)?)?;
        let files = Files::open(&data_dir)?;
        let node = node_name(arguments.node.node_name.clone())?;
        let server = arguments.server.clone();
        join_once(&arguments, &files, &node, &*clock).await?;
        let authority = files.authority()?.context("the cluster's authority is not kept")?;
        let client_pair = files.pair(Kind::Client)?.context("this machine has no certificate")?;
        let shown_to_api = tls::Current::new(&client_pair)?;
        let roots = tls::roots_of(authority)?;
        let tls_to_api = tls::client(roots.clone(), Arc::clone(&shown_to_api))?;
        let client = carob_client::remote(&server, tls_to_api.clone(), None)?;
        let has_tunnel = arguments.tunnel;
        let settings = Settings::of_agent(arguments, of_cluster(&client, &files).await?)?;
        let serving = match files.pair(Kind::Serving)? {
            Some(pair) => pair,
            None => certificates::placeholder()?,
        };
        let shown_by_kubelet = tls::Current::new(&serving)?;
        let health = Health::new();
        let common = Common {
            clients: Clients::OfNode(client.clone()),
            kubelet_tls: tls::kubelet_server(roots, Arc::clone(&shown_by_kubelet))?,
            machine_id: identity::of_machine(&settings)?,
            informers: Informers::new(client.clone()),
            settings: Arc::new(settings),
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            machine: Arc::default(),
            store: None,
        };
        let renewal = Arc::new(Renewal {
            files,
            client: client.clone(),
            informers: Arc::clone(&common.informers),
            node,
            addresses: common.settings.node_ips.clone(),
            shown_to_api,
            shown_by_kubelet,
            clock,
        });
        let mut list = vec![connection(server.clone()), parts::informers(&common)];
        list.extend(of_machine(&common, &client));
        if has_tunnel {
            list.push(tunnel::part(server, tls_to_api, &common.settings));
        }
        list.push(renewal_part(renewal));
        let supervisor = Supervisor::start(list, &health)?;
        let Common { settings, machine, .. } = common;
        Ok(Self { settings, health, supervisor, machine, _lock: lock })
    }

    /// Ends the parts. Pods run on; without any, nothing is left on the machine but files.
    pub(crate) async fn stop(self) -> Result<()> {
        let parts = self.supervisor.stop().await.map_err(anyhow::Error::from_boxed);
        let left = match self.machine.take_runtime() {
            Some(runtime) => parts::leave(&runtime, &self.settings).await.context("leave the machine as it was"),
            None => Ok(()),
        };
        parts.and(left)
    }
}

/// The way to the API, which may be cut at any time: whoever uses it waits and tries again.
fn connection(server: Uri) -> Part {
    Part::new(parts::API, move |context| {
        let server = server.clone();
        async move {
            tracing::debug!(%server, "the API is on another machine");
            context.ready();
            context.shutdown().cancelled().await;
            Ok(())
        }
    })
}

fn renewal_part(renewal: Arc<Renewal>) -> Part {
    Part::new(parts::CERTIFICATES, move |context| {
        let renewal = Arc::clone(&renewal);
        async move {
            context.ready();
            renewal.run(&context.shutdown()).await;
            Ok(())
        }
    })
    .needs(&[parts::API, parts::INFORMERS])
}

/// Joins where the machine has no certificate that counts.
async fn join_once(arguments: &AgentArgs, files: &Files, node: &str, clock: &dyn Clock) -> Result<()> {
    let token = token(arguments)?;
    if let Some(token) = &token {
        join::check_cluster(files, token)?;
    }
    let held = files.pair(Kind::Client)?;
    let ends = held.as_ref().map(|pair| pki::not_after(&pair.certificate_pem)).transpose()?;
    if ends.is_some_and(|ends| ends > clock.now()) && files.authority()?.is_some() {
        return Ok(());
    }
    let Some(token) = token else {
        bail!(
            "{}: give the --token that `carob token create` prints on the server",
            if ends.is_some() {
                "this machine's certificate has expired"
            } else {
                "this machine has not joined a cluster yet"
            }
        )
    };
    let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        match join::join(&arguments.server, &token, node, files).await {
            Ok(()) => {
                tracing::info!(server = %arguments.server, node, "this machine has joined");
                return Ok(());
            }
            Err(JoinError::Refused(error)) => return Err(error.context(format!("join {}", arguments.server))),
            Err(JoinError::Unreached(error)) => {
                let delay = retry.fail();
                tracing::warn!(?delay, "this machine could not join yet: {error:#}");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

fn token(arguments: &AgentArgs) -> Result<Option<JoinToken>> {
    let text = match (&arguments.token, &arguments.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => fs_err::read_to_string(path)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse().context("--token")?))
}

/// What the cluster says of itself, or has said before.
async fn of_cluster(client: &kube::Client, files: &Files) -> Result<OfCluster> {
    let known = files.cluster()?;
    let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        let told = tokio::time::timeout(TELL_TIMEOUT, cluster::ask(client)).await;
        let error = match told.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TELL_TIMEOUT.as_secs()))) {
            Ok(told) => {
                if known.as_ref() != Some(&told) {
                    files.keep_cluster(&told)?;
                }
                return Ok(told);
            }
            Err(error) => error,
        };
        if let Some(known) = known {
            tracing::warn!("the cluster is as it was when it could be asked last: {error:#}");
            return Ok(known);
        }
        let delay = retry.fail();
        tracing::warn!(?delay, "the cluster does not say how its network is: {error:#}");
        tokio::time::sleep(delay).await;
    }
}
