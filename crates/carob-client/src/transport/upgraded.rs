//! A connection to an API server on another machine that a request has made something else of.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use rustls::ClientConfig;

use super::dial::{Connector, DialError};

/// How long the server may take for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("connect to {server}")]
    Dial {
        server: Uri,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("make the request")]
    Request(#[from] http::Error),
    #[error("speak HTTP with the server")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Late,
    #[error("the server answers with {0}")]
    Refused(StatusCode),
}

impl UpgradeError {
    fn dial(server: &Uri, source: DialError) -> Self {
        Self::Dial { server: server.clone(), source: Box::new(source) }
    }
}

/// Asks `https://HOST:PORT` for `path` with an upgrade to `protocol`, and gives back the connection once the server has agreed. `tls`
/// says whom to trust and whose certificate to show.
pub async fn upgraded(
    server: &Uri,
    mut tls: ClientConfig,
    path: &str,
    protocol: &str,
) -> Result<Upgraded, UpgradeError> {
    // A connection of HTTP/2 cannot become anything else.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = Connector::new(Arc::new(tls)).connect(server.clone()).await;
    let stream = stream.map_err(|error| UpgradeError::dial(server, error))?;
    let (mut sender, work) = hyper::client::conn::http1::handshake(stream).await?;
    let working = tokio::spawn(work.with_upgrades());
    let host = server.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path).header(HOST, host).header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request.body(Empty::<Bytes>::new())?)).await;
    let response = answer.map_err(|_late| UpgradeError::Late).and_then(|answer| Ok(answer?));
    match response {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(response).await?),
        other => {
            working.abort();
            Err(other.map_or_else(|error| error, |response| UpgradeError::Refused(response.status())))
        }
    }
}
