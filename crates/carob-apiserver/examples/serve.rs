//! An API server on loopback with throw-away certificates and an in-memory store, for trying kubectl on it:
//! `cargo run -p carob-apiserver --example serve -- DIR [PORT]` writes DIR/kubeconfig and serves until interrupted.

#[path = "../tests/api/pki.rs"]
mod pki;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, Config};
use carob_kit::SystemClock;
use carob_store::{Options, Store};
use pki::{Authority, Outcome};

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: serve DIR [PORT]")?);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let authority = Authority::new()?;
    let keys = ServiceAccountKeys::from_pkcs8(&ServiceAccountKeys::generate_pkcs8()?, &[])?;
    let store = Store::in_memory(Options::default());
    let api = ApiServer::new(Config::new(store, Arc::new(SystemClock::new()), Arc::new(keys)))?;
    api.bootstrap().await?;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let config = authority.kubeconfig(listener.local_addr()?.port())?;
    tokio::fs::write(dir.join("kubeconfig"), config).await?;
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "wait for an interrupt");
        }
    };
    api.serve(listener, authority.server()?, interrupted).await;
    Ok(())
}
