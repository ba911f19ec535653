//! A shard's work on what its unit's kernel sends by a twin: answers of endpoints on the unit are translated, the rest leaves as it is.

use weir_identity::Moment;

use super::{Errand, Shard, send};
use crate::classifier::millis;
use crate::counters::DropReason;
use crate::farm::PortId;
use crate::forwarder::Fate;
use crate::packet::{Packet, Queue};
use crate::responder;

impl<Q: Queue> Shard<Q> {
    /// Takes a frame on that the kernel has sent by the twin of `port`.
    pub(super) fn take_from_kernel(&mut self, mut packet: Q::Packet, port: PortId, now: Moment) {
        if self.farm.has_local()
            && let Some((parsed, owner)) = self.forwarder.kernels_answer(packet.data(), &self.farm)
        {
            if owner != self.number {
                return self.send_errand(owner, Errand::FromKernel(packet, port));
            }
            match self.forwarder.forward_answer(&mut packet, &parsed, &self.farm, millis(now)) {
                // The kernel itself is told, which sends less then.
                Some(Fate::TooBig(mtu)) if !super::split::may_split(packet.data(), &parsed) => {
                    let told = super::respond(&mut packet, |frame, out| responder::too_big(frame, mtu.into(), out));
                    self.forwarder.drops.count(DropReason::TooBig);
                    if told {
                        self.forwarder.counters.told_too_big += 1;
                        packet.data_mut()[..6].copy_from_slice(&self.farm.ports[usize::from(port)].mac);
                        self.hand_to_twin(packet, port);
                    }
                    return;
                }
                Some(fate) => {
                    self.tell_notices();
                    return self.settle(packet, parsed, port, fate, now);
                }
                None => {}
            }
        }
        send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, port);
    }
}
