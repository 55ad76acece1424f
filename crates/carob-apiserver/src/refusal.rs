//! What another server's refusal says, in the words of client-go (apimachinery `pkg/api/errors`, `NewGenericServerResponse`).

use http::StatusCode;

/// Reason and message of a response that is no Status. `said` is its body.
pub(crate) fn refusal(code: StatusCode, said: &str) -> (&'static str, String) {
    match code {
        StatusCode::BAD_REQUEST => ("BadRequest", "the server rejected our request for an unknown reason".to_owned()),
        StatusCode::NOT_FOUND => ("NotFound", "the server could not find the requested resource".to_owned()),
        StatusCode::UNAUTHORIZED => {
            ("Unauthorized", "the server has asked for the client to provide credentials".to_owned())
        }
        StatusCode::FORBIDDEN => ("Forbidden", said.to_owned()),
        StatusCode::SERVICE_UNAVAILABLE => {
            ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned())
        }
        code if code.is_server_error() => {
            ("InternalError", format!("an error on the server ({said:?}) has prevented the request from succeeding"))
        }
        code => (
            "",
            format!("the server responded with the status code {} but did not return more information", code.as_u16()),
        ),
    }
}
