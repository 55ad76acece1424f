//! A terminal's controlling side for the async runtime.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use carob_cri::TerminalSize;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

/// The three things to do with a terminal, each on a descriptor of its own.
pub(crate) struct Terminal {
    pub(crate) input: pipe::Sender,
    pub(crate) output: TerminalOutput,
    pub(crate) size: TerminalResizer,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        // A terminal is read and written as a pipe is.
        Ok(Self {
            input: pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?,
            output: TerminalOutput(pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?),
            size: TerminalResizer(master),
        })
    }
}

/// What the terminal shows.
pub(crate) struct TerminalOutput(pipe::Receiver);

impl AsyncRead for TerminalOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(context, buffer)) {
            // Nobody has the other side open any more (tty_ioctl(4)): the end.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

pub(crate) struct TerminalResizer(OwnedFd);

impl TerminalResizer {
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, size)?)
    }
}
