//! `weirctl pki`: makes, renews and revokes certificates, and says where they are and where they go.

use std::io::Write;
use std::path::Path;

use weir_identity::{HostId, UnitId};
use weir_pki::{Authority, Node};

use crate::Failure;
use crate::cli::PkiAction;

pub(crate) fn run(dir: &Path, action: &PkiAction, out: &mut impl Write) -> Result<(), Failure> {
    let made = match action {
        PkiAction::Init => {
            Authority::create(dir)?;
            return Ok(writeln!(out, "{}: authority made; keep authority.key here only", dir.display())?);
        }
        PkiAction::Unit { id, lifetime } => {
            Authority::open(dir)?.issue(&format!("unit-{id}"), &Node::Unit(UnitId(*id)), lifetime.days)?
        }
        PkiAction::Host { ids, name, group, members, lifetime } => {
            let default = || format!("host-{}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join("-"));
            let hosts = ids.iter().copied().map(HostId).collect();
            let node = match group {
                None => Node::Hosts(hosts),
                Some(group) => {
                    let vouches = members.iter().map(|(first, last)| (HostId(*first), HostId(*last))).collect();
                    Node::Member { hosts, group: group.clone(), vouches }
                }
            };
            Authority::open(dir)?.issue(&name.clone().unwrap_or_else(default), &node, lifetime.days)?
        }
        PkiAction::Renew { name, lifetime } => Authority::open(dir)?.renew(name, lifetime.days)?,
        PkiAction::Revoke { name } => {
            let list = Authority::open(dir)?.revoke(name)?;
            return Ok(writeln!(
                out,
                "{}: copy it to every unit and agent: it counts within a second",
                list.display()
            )?);
        }
    };
    Ok(writeln!(out, "{}: copy authority.pem, node.pem, node.key and revoked.pem to the node", made.display())?)
}
