//! A peer of another make: it speaks the protocol as `src/peer/opening.rs` has it written down, and can do so badly.

use std::net::SocketAddr;

use egret::peer::{Key, payload};
use snow::{Builder, TransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::node::hello;

pub struct Stranger {
    stream: TcpStream,
    noise: TransportState,
}

/// The first bytes of a connection, without the handshake.
pub fn preamble(version: u8, dialling: &str, dialled: &str) -> Vec<u8> {
    let mut bytes = b"egret".to_vec();
    bytes.push(version);
    for name in [dialling, dialled] {
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}

pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&length.to_be_bytes(), payload].concat()
}

pub async fn read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut frame = vec![0; length.into()];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// Says something on a new connection, and hears what comes until it is closed.
pub async fn shout(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut heard = Vec::new();
    // It may be closed while there is still something to say, or to hear.
    let _ = stream.write_all(bytes).await;
    let _ = stream.read_to_end(&mut heard).await;
    heard
}

/// The key's bytes as a key file has them.
fn psk(key: &Key) -> [u8; 32] {
    let line = key.to_line();
    std::array::from_fn(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap())
}

impl Stranger {
    /// Says who it is, but does not introduce itself.
    pub async fn connect(to: SocketAddr, key: &Key, dialling: &str, dialled: &str) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let mut opening = preamble(1, dialling, dialled);
        let psk = psk(key);
        let builder = Builder::new("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse().unwrap());
        let builder = builder.psk(0, &psk).unwrap().prologue(&opening).unwrap();
        let mut noise = builder.build_initiator().unwrap();
        let mut message = [0; 48];
        assert_eq!(noise.write_message(&[], &mut message).unwrap(), 48);
        opening.extend_from_slice(&message);
        stream.write_all(&frame(&opening)).await.unwrap();
        let answer = read_frame(&mut stream).await.unwrap();
        assert_eq!(answer[..7], *b"egret\x01\x00");
        noise.read_message(&answer[7..], &mut []).unwrap();
        Self { stream, noise: noise.into_transport_mode().unwrap() }
    }

    /// One that has introduced itself, and heard who the other is.
    pub async fn introduced(to: SocketAddr, key: &Key, dialling: &str, dialled: &str) -> Self {
        let mut stranger = Self::connect(to, key, dialling, dialled).await;
        let introduction = payload::message(&egret::failover::Message::Hello(hello(dialling))).unwrap();
        stranger.send(&introduction).await;
        let heard = stranger.receive().await.unwrap();
        let expected = egret::failover::Message::Hello(hello(dialled));
        assert_eq!(payload::parse(&heard), payload::Payload::Message(expected));
        stranger
    }

    pub async fn send(&mut self, payload: &[u8]) {
        let sealed = self.seal(payload);
        self.write(&sealed).await;
    }

    /// The next frame, with its length.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0; payload.len() + 16];
        let length = self.noise.write_message(payload, &mut sealed).unwrap();
        frame(&sealed[..length])
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next payload, unless the connection ends.
    pub async fn receive(&mut self) -> Option<Vec<u8>> {
        let sealed = read_frame(&mut self.stream).await.ok()?;
        let mut payload = vec![0; sealed.len()];
        let length = self.noise.read_message(&sealed, &mut payload).unwrap();
        payload.truncate(length);
        Some(payload)
    }
}
