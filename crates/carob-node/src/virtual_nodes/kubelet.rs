//! The kubelet API of virtual nodes, which says no: their Pods have no processes to log, enter or reach.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::DuplexStream;

/// Bytes on their way in one direction of a connection.
const BUFFER_LEN: usize = 4096;

/// A connection to the kubelet API of a virtual node. Must be called within a tokio runtime; its task ends with it.
pub fn connect(node: &str) -> DuplexStream {
    let (client, server) = tokio::io::duplex(BUFFER_LEN);
    let node = node.to_owned();
    tokio::spawn(async move {
        let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(refuse(&node, &request))));
        if let Err(error) =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await
        {
            tracing::debug!(%error, node, "a connection to a virtual node ended");
        }
    });
    client
}

/// A `Status`, since that is what clients print the message of.
fn refuse(node: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let message =
        format!("node {node} is virtual: its Pods have no processes, so it does not serve {}", request.uri().path());
    let code = StatusCode::NOT_IMPLEMENTED;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "code": code.as_u16(),
    });
    let mut response = Response::new(Full::from(status.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn it_says_no_and_why() {
        let mut stream = connect("virtual-7");
        let request = b"GET /containerLogs/default/p/c HTTP/1.1\r\nhost: virtual-7\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
        assert!(answer.contains("node virtual-7 is virtual: its Pods have no processes"), "{answer}");
        assert!(answer.contains("it does not serve /containerLogs/default/p/c"), "{answer}");
    }
}
