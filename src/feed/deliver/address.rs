//! Which addresses may be sent to: whoever declares a webhook must not reach, through this server,
//! what only this server can reach.
//!
//! Names are resolved here, and what is connected to is one of the very addresses that were checked,
//! so that a name which resolves differently the next time gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::vocab::Network;

/// What is not reachable from everywhere, or serves the machine it is asked from.
const CLOSED: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    // Azure answers every machine there.
    "168.63.129.16",
    // Link-local; where clouds answer for the machine's identity.
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/127",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
];

/// Which addresses may be sent to.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    allowed: Arc<[Network]>,
    closed: Arc<[Network]>,
}

impl Addresses {
    /// Those reachable from everywhere, and these.
    pub(super) fn new(allowed: &[Network]) -> Self {
        let closed = CLOSED.iter().filter_map(|text| text.parse().ok()).collect();
        Self { allowed: allowed.into(), closed }
    }

    /// Whether it may be sent to. An address that carries another of IPv4 is what it carries.
    pub(super) fn permits(&self, address: IpAddr) -> bool {
        if self.allowed.iter().any(|network| network.has(address)) {
            return true;
        }
        let carried = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => carried(address),
        };
        match carried {
            Some(carried) => self.permits(IpAddr::V4(carried)),
            None => !self.closed.iter().any(|network| network.has(address)),
        }
    }
}

/// The address of IPv4 inside one that is mapped, translated (RFC 6052) or tunnelled (RFC 3056).
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4(g, h)),
        [0x2002, ..] => Some(v4(b, c)),
        _ => None,
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let permitted: Vec<SocketAddr> =
                found.into_iter().filter(|found| addresses.permits(found.ip())).collect();
            if permitted.is_empty() {
                return Err(format!("{host} has no address that may be sent to").into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_closed_whatever_form_it_takes() {
        let addresses = Addresses::new(&[]);
        assert_eq!(addresses.closed.len(), CLOSED.len(), "every range can be read");
        for closed in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(!addresses.permits(closed.parse().unwrap()), "{closed}");
        }
        for open in
            ["1.1.1.1", "172.32.0.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"]
        {
            assert!(addresses.permits(open.parse().unwrap()), "{open}");
        }
    }

    #[test]
    fn what_is_allowed_is_open_and_no_more() {
        let allowed: Vec<Network> =
            ["127.0.0.1", "10.2.0.0/16"].map(|text| text.parse().unwrap()).to_vec();
        let addresses = Addresses::new(&allowed);
        for (address, open) in [
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.2.255.1", true),
            ("10.3.0.1", false),
            ("::ffff:10.2.0.1", true),
            ("::1", false),
        ] {
            assert_eq!(addresses.permits(address.parse().unwrap()), open, "{address}");
        }
    }
}
