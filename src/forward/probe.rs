//! Health checks, made: what [`crate::balance`] says is due.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::proxy_protocol::{self, Version};
use super::tls;
use crate::balance::CheckError;

/// How a target is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    pub question: Question,
    /// Where, if that is not the target's own port.
    pub port: Option<u16>,
    /// What the target is told first, of a question that has words.
    pub proxy_protocol: Option<Version>,
}

/// What a target is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Question {
    /// To take a connection.
    #[default]
    Tcp,
    /// To answer a GET with a status that is looked for.
    Http(HttpQuestion),
    /// The same by TLS. Its certificate may be anybody's.
    Https(HttpQuestion),
}

/// A GET by HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpQuestion {
    /// With the query.
    pub path: String,
    /// The header, and with TLS the name that is asked for; the target's address if unset.
    pub host: Option<String>,
    /// Statuses of a healthy target.
    pub matcher: Vec<RangeInclusive<u16>>,
}

impl Check {
    /// Asks `target`. `Ok(None)` says that nothing was learned of it, since this host could not ask.
    ///
    /// # Errors
    /// What is wrong with the target.
    pub async fn ask(&self, target: SocketAddr, within: Duration) -> Result<Option<()>, CheckError> {
        let address = SocketAddr::new(target.ip(), self.port.unwrap_or_else(|| target.port()));
        let asking = async {
            let mut stream = match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => return connect_error(&error).map_or(Ok(None), Err),
            };
            match &self.question {
                // Closed by a reset: neither side keeps a port waiting for what no one will send.
                Question::Tcp => SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .map_or(Ok(Some(())), |()| Ok(Some(()))),
                Question::Http(question) => {
                    self.introduce(&mut stream).await?;
                    question.ask(stream, address).await.map(Some)
                }
                Question::Https(question) => {
                    self.introduce(&mut stream).await?;
                    match tls::target::connect(stream, address, question.host.as_deref()).await? {
                        Some(stream) => question.ask(stream, address).await.map(Some),
                        None => Ok(None),
                    }
                }
            }
        };
        timeout(within, asking).await.unwrap_or(Err(CheckError::TimedOut))
    }
}

impl Check {
    /// Says that the connection is this host's own.
    async fn introduce(&self, stream: &mut TcpStream) -> Result<(), CheckError> {
        let Some(version) = self.proxy_protocol else { return Ok(()) };
        let (Ok(own), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
            return Err(CheckError::Reset);
        };
        stream.write_all(&proxy_protocol::encode(version, own, peer)).await.map_err(|_| CheckError::Reset)
    }
}

impl HttpQuestion {
    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: SocketAddr,
    ) -> Result<(), CheckError> {
        let host = self.host.clone().unwrap_or_else(|| address.to_string());
        let request = Request::get(&self.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "egret-health-check")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| CheckError::Malformed)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| http_error(&error))?;
        // Ends with this function: the body is of no interest.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| http_error(&error))?;
        let status = response.status().as_u16();
        if self.matcher.iter().any(|range| range.contains(&status)) {
            Ok(())
        } else {
            Err(CheckError::Status(status))
        }
    }
}

/// What a failed connect says of the target; nothing, if it is this host that cannot.
pub(super) fn connect_error(error: &std::io::Error) -> Option<CheckError> {
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => CheckError::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => CheckError::Unreachable,
        ErrorKind::TimedOut => CheckError::TimedOut,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => CheckError::Reset,
        _ => return None,
    })
}

fn http_error(error: &hyper::Error) -> CheckError {
    if error.is_parse() || error.is_parse_status() { CheckError::Malformed } else { CheckError::Reset }
}
