//! The client of webhooks, whoever they work for: admission calls them with AdmissionReviews, custom resources with
//! ConversionReviews. Servers of aggregated APIs are connected to alike.
//!
//! [`WebhookClient::hook`] makes a [`Hook`] of a `clientConfig`; keep it as long as the configuration stays, since it keeps
//! the connections. [`Hook::post`] and [`Hook::ask`] send one JSON body and answer with the JSON of the reply. A Service is dialled by one of
//! its ready endpoints, never through its virtual address, so no part of the node has to be up for it.

mod client;
mod connect;
mod tls;

pub(crate) use client::{CallError, FetchError, Hook, WebhookClient, connect_error, pooled};
pub(crate) use connect::{Connector, Server};
pub(crate) use tls::{Identity, Trust, roots_of};
