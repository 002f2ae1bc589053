//! The least HTTP/1.1 server that the SDK can talk to: one request a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// `(lower-case name, value)`
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

pub enum Answer {
    /// Status, further header lines (each with CRLF) and body.
    Http(u16, &'static str, String),
    /// The connection is closed without a word.
    Closed,
    /// Nothing ever comes; the connection stays open.
    Silence,
}

/// Answers every request by `handler` until the test's runtime ends.
pub async fn serve(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> SocketAddr {
    serve_at("127.0.0.1:0", handler).await
}

/// As [`serve`], on an address of this network namespace.
pub async fn serve_at(
    address: &str,
    handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = Arc::clone(&handler);
            tokio::spawn(async move {
                // A client that goes away (its timeout) is none of the stub's errors.
                let _ = answer(stream, &*handler).await;
            });
        }
    });
    address
}

async fn answer(stream: TcpStream, handler: &(dyn Fn(&Request) -> Answer + Sync)) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut words = first.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut request = Request { method, path, headers: Vec::new(), body: String::new() };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8(body).unwrap();
    match handler(&request) {
        Answer::Closed => Ok(()),
        Answer::Silence => std::future::pending().await,
        Answer::Http(status, headers, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Stub\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
            );
            stream.write_all((head + &body).as_bytes()).await?;
            stream.shutdown().await
        }
    }
}
