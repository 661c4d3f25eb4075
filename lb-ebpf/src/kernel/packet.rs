//! A packet in the kernel: pointers compared with the packet's end.

use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::Verdict;
use lb_ebpf::{Packet, Wire};

/// No header that we read begins further in than this. The verifier wants a
/// bound on an offset that comes from the packet itself.
const MAX_OFFSET: usize = 255;

/// The frame an XDP program was called with.
pub(crate) struct XdpPacket<'a>(pub(crate) &'a XdpContext);

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn at<H: Wire>(&mut self, offset: usize) -> Result<&mut H, Verdict> {
        if offset > MAX_OFFSET {
            return Err(Verdict::Truncated);
        }
        let start = self.0.data() + offset;
        if start + size_of::<H>() > self.0.data_end() {
            return Err(Verdict::Truncated);
        }
        let header = start as *mut H;
        // SAFETY: the header lies between data and data_end, as just compared;
        // `Wire` has alignment 1 and any bytes are a value; `&mut self` keeps
        // it the only reference.
        Ok(unsafe { &mut *header })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn shift_head(&mut self, bytes: i32) -> Result<(), Verdict> {
        // SAFETY: the context is the one this program was called with, and
        // `&mut self` means that no header is borrowed from the packet.
        match unsafe { bpf_xdp_adjust_head(self.0.ctx, -bytes) } {
            0 => Ok(()),
            _ => Err(Verdict::NoHeadroom),
        }
    }
}
