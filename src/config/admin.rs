//! The section `[admin]`.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use super::Admin;
use super::reader::{Reader, Section, quoted};
use super::render::string;

/// Where the control socket is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/egret/egret.sock";

/// Where HTTP is served if nobody says otherwise: for this host alone.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9464));

pub(super) fn read(reader: &mut Reader<'_>, root: &Section<'_>) -> Admin {
    let default = Admin::default();
    let Some(section) = reader.section(root, "admin") else { return default };
    let listen = reader.parsed(&section, "listen", listen_address);
    let socket = reader.parsed(&section, "socket", socket_path);
    let price = reader.number(&section, "nat_gateway_price_per_gb", &(0.0..=1000.0), "US dollars");
    Admin {
        listen: listen.map_or(default.listen, |listen| listen.value),
        socket: socket.map_or(default.socket, |socket| socket.value),
        nat_gateway_price_per_gb: price.map_or(default.nat_gateway_price_per_gb, Price::from_dollars),
    }
}

/// Writes what [`read`] reads.
pub(super) fn write(out: &mut String, admin: &Admin) -> std::fmt::Result {
    writeln!(out, "\n[admin]")?;
    let listen = admin.listen.map_or_else(|| OFF.to_owned(), |listen| listen.to_string());
    writeln!(out, "listen = {}", string(&listen))?;
    writeln!(out, "socket = {}", string(&admin.socket.to_string_lossy()))?;
    writeln!(out, "nat_gateway_price_per_gb = {:?}", admin.nat_gateway_price_per_gb.dollars())
}

/// An amount of money, in millionths of a US dollar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    micros: u32,
}

impl Price {
    /// What a managed NAT gateway takes for a gigabyte in most regions: <https://aws.amazon.com/vpc/pricing/>.
    pub const NAT_GATEWAY: Self = Self { micros: 45_000 };

    /// In US dollars.
    #[must_use]
    pub fn dollars(self) -> f64 {
        f64::from(self.micros) / 1e6
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    fn from_dollars(dollars: f64) -> Self {
        Self { micros: (dollars * 1e6).round() as u32 }
    }
}

fn listen_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == OFF {
        return Ok(None);
    }
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
    address.map(Some).ok_or_else(|| {
        format!(
            "{} is not an address with a port; use one such as \"{DEFAULT_LISTEN}\", or \"off\"",
            quoted(text)
        )
    })
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || text.contains('\0') || text.ends_with('/') {
        return Err(format!("{} is not an absolute path of a socket, such as {DEFAULT_SOCKET}", quoted(text)));
    }
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!("is {} bytes long; the system allows {MAX_SOCKET_PATH}", text.len()));
    }
    Ok(path.to_owned())
}

const OFF: &str = "off";

/// `sun_path` of unix(7), less the final NUL.
const MAX_SOCKET_PATH: usize = 107;
