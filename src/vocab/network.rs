//! Ranges of IP addresses.

use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses, as `10.0.0.0/8` or `fd00::/8`; one address is a range, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: u128,
    bits: u8,
}

/// The text is no range of addresses.
#[derive(Debug, thiserror::Error)]
#[error("expected a network such as 10.0.0.0/8, fd00::/8 or 192.168.1.7")]
pub struct NetworkError;

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| NetworkError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| NetworkError)?;
        // The ranges of IPv4 are kept as those of the addresses mapped into IPv6.
        let (most, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(NetworkError);
        }
        Ok(Self { address: number(address), bits: bits + offset })
    }
}

impl Network {
    /// Whether an address lies in it.
    pub fn has(self, address: IpAddr) -> bool {
        let differ = self.address ^ number(address);
        differ.leading_zeros() >= u32::from(self.bits)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_or_refused() {
        for text in ["", "10.0.0.0/33", "localhost", "10.0.0/8", "::/129", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_has_its_addresses_and_no_others() {
        let network: Network = "10.2.0.0/16".parse().unwrap();
        assert!(network.has("10.2.255.1".parse().unwrap()));
        assert!(network.has("::ffff:10.2.0.1".parse().unwrap()));
        assert!(!network.has("10.3.0.1".parse().unwrap()));
        let all: Network = "::/0".parse().unwrap();
        assert!(all.has("10.3.0.1".parse().unwrap()));
    }
}
