//! Streams between a client and a Pod, in all the ways in which clients ask for them: WebSocket with channels, SPDY, and
//! SPDY inside a WebSocket; and the other end of them, for a runtime that gives a URL.
//!
//! [`serve`] answers a request with a stream. [`remote`] is exec and attach, [`forward`] is port-forward; both see bytes and know
//! nothing of the framing below. [`client`] joins the streams that another program serves. [`reverse`] is the way to nodes that nobody
//! can reach.

pub mod channels;
pub mod client;
pub mod forward;
pub mod forward_channels;
pub mod remote;
pub mod reverse;
pub mod serve;
pub mod spdy;
pub mod spdy_remote;
pub mod tunnel;
pub mod upgrade;
