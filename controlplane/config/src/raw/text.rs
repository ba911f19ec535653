//! Text and numbers of the YAML that validation parses: each type knows what to say when something else stands there.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Declares a newtype over text, with what it expects and examples.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $expected:literal, [$($example:literal),+]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// What should stand there.
            pub const EXPECTED: &str = $expected;
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($name::EXPECTED)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        Ok($name(text.to_owned()))
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $expected, "examples": [$($example),+] })
            }
        }
    };
}

text!(
    /// An IP address.
    AddressText, "an IPv4 or IPv6 address such as 10.80.0.11 or fd80::11", ["10.80.0.11", "fd80::11"]
);
text!(
    /// An address with prefix length, or a prefix.
    PrefixText, "an address with prefix length such as 10.80.0.1/24 or fd80::1/64", ["10.80.0.1/24", "fd80::1/64"]
);
text!(
    /// A MAC address.
    MacText, "a MAC address such as \"02:00:00:00:00:0b\"", ["02:00:00:00:00:0b"]
);
text!(
    /// A span of time.
    DurationText, "a duration such as 500ms, 10s or 1h", ["500ms", "10s", "1h"]
);
text!(
    /// An amount of memory.
    SizeText, "a size such as 256MiB or 4GiB", ["256MiB", "4GiB"]
);
text!(
    /// What a port is made of.
    DeviceText,
    "a device: af_packet:IFACE, af_xdp:IFACE, a PCI address (0000:03:00.0), a DPDK vdev (net_ring0) or vlan:PORT.ID",
    ["af_packet:eth1", "af_xdp:eth1", "0000:03:00.0", "net_tap0,iface=tap0", "vlan:net0.100"]
);

/// A number or, as text, a range of them: `80`, `"8000-8099"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number or a range such as \"2-5\"")]
pub enum NumberOrRange {
    /// One number.
    Number(u64),
    /// First and last with `-` between, or one number in quotes.
    Range(String),
}

/// Ports of a service: `80`, `"8000-8099"`, `[80, 443, "8000-8099"]` or `all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a port, a range such as \"8000-8099\", a list of these, or all")]
pub enum PortSet {
    /// One port, one range, or `all`.
    One(NumberOrRange),
    /// Several.
    Several(Vec<NumberOrRange>),
}
