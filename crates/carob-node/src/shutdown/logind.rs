//! What the node asks of systemd's logind, over the system's bus (org.freedesktop.login1(5)).

use std::time::Duration;

use futures_util::StreamExt;
use zbus::proxy::{Builder, CacheProperties, SignalStream};
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy, connection};

/// How long an answer is waited for (libdbus: 25 s).
const CALL_TIME_MAX: Duration = Duration::from_secs(25);
/// The signal of logind before a shutdown (true), and after one that has been called off (false).
const PREPARE: &str = "PrepareForShutdown";
/// Has logind read its configuration again.
const SIGHUP: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub(super) enum LogindError {
    #[error("reach the system's bus")]
    Bus(#[source] zbus::Error),
    #[error("{what} of logind")]
    Call {
        what: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("the system's bus has ended the connection")]
    Ended,
}

fn call(what: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |source| LogindError::Call { what, source }
}

/// As long as it is held, a shutdown waits, up to logind's limit.
#[derive(Debug)]
pub(super) struct Lock {
    _descriptor: OwnedFd,
}

/// A connection to logind.
pub(super) struct Logind {
    connection: Connection,
    manager: Proxy<'static>,
    signals: SignalStream<'static>,
}

impl Logind {
    /// Over the bus that `DBUS_SYSTEM_BUS_ADDRESS` names, or the usual one. From now on no signal is missed.
    pub(super) async fn connect() -> Result<Self, LogindError> {
        let bus = connection::Builder::system().map_err(LogindError::Bus)?;
        let connection = bus.method_timeout(CALL_TIME_MAX).build().await.map_err(LogindError::Bus)?;
        let manager = manager(&connection).await.map_err(LogindError::Bus)?;
        let signals = manager.receive_signal(PREPARE).await.map_err(call(PREPARE))?;
        Ok(Self { connection, manager, signals })
    }

    /// How long logind lets a shutdown wait for those who hold locks (`InhibitDelayMaxSec` of logind.conf(5)).
    pub(super) async fn delay_max(&self) -> Result<Duration, LogindError> {
        const DELAY: &str = "InhibitDelayMaxUSec";
        self.manager.get_property(DELAY).await.map(Duration::from_micros).map_err(call(DELAY))
    }

    /// Whether a shutdown is near.
    pub(super) async fn is_near(&self) -> Result<bool, LogindError> {
        const NEAR: &str = "PreparingForShutdown";
        self.manager.get_property(NEAR).await.map_err(call(NEAR))
    }

    /// Lets shutdowns wait from now on.
    pub(super) async fn inhibit(&self, who: &str, why: &str) -> Result<Lock, LogindError> {
        const INHIBIT: &str = "Inhibit";
        let lock = self.manager.call(INHIBIT, &("shutdown", who, why, "delay")).await;
        Ok(Lock { _descriptor: lock.map_err(call(INHIBIT))? })
    }

    /// Has logind read its configuration again, which it does a little later.
    pub(super) async fn reload(&self) -> Result<(), LogindError> {
        let (service, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        let order = ("systemd-logind.service", "all", SIGHUP);
        let sent = self.connection.call_method(Some(service), path, Some(SYSTEMD), "KillUnit", &order).await;
        sent.map(drop).map_err(call("a new reading of the configuration"))
    }

    /// Waits for a shutdown to be near (true), or to be called off (false). Cancel safe.
    pub(super) async fn next(&mut self) -> Result<bool, LogindError> {
        let signal = self.signals.next().await.ok_or(LogindError::Ended)?;
        signal.body().deserialize().map_err(call(PREPARE))
    }
}

const SYSTEMD: &str = "org.freedesktop.systemd1.Manager";

async fn manager(connection: &Connection) -> zbus::Result<Proxy<'static>> {
    let manager = Builder::new(connection).destination("org.freedesktop.login1")?;
    let manager = manager.path("/org/freedesktop/login1")?.interface("org.freedesktop.login1.Manager")?;
    // Its limit changes, and not all versions say so.
    manager.cache_properties(CacheProperties::No).build().await
}
