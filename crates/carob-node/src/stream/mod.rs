//! Streams between a client and a Pod, in all the ways in which clients ask for them: WebSocket with channels, SPDY, and
//! SPDY inside a WebSocket.
//!
//! [`remote`] is exec and attach, [`forward`] is port-forward; both see bytes and know nothing of the framing below.

pub mod channels;
pub mod forward;
pub mod forward_channels;
pub mod remote;
pub mod spdy;
pub mod spdy_remote;
pub mod tunnel;
pub mod upgrade;
