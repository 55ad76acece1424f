//! The client of webhooks, whoever they work for: admission calls them with AdmissionReviews, custom resources with
//! ConversionReviews.
//!
//! [`WebhookClient::hook`] makes a [`Hook`] of a `clientConfig`; keep it as long as the configuration stays, since it keeps
//! the connections. [`Hook::post`] sends one JSON body and answers with the JSON of the reply. A Service is dialled by one of
//! its ready endpoints, never through its virtual address, so no part of the node has to be up for it.

mod client;
mod connect;
mod tls;

pub(crate) use client::{Hook, WebhookClient};
