//! A packet in the kernel: pointers compared with the packet's end.

use core::hint::black_box;

use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use lb_common::Verdict;
use lb_ebpf::{Packet, Wire};

/// Nothing that we read begins further in than this: the longest quotation of a
/// message of ICMPv6 behind all its headers. The verifier wants a bound on an
/// offset that comes from the packet itself.
const MAX_OFFSET: u32 = 2047;

/// The frame an XDP program was called with; it may be in pieces, of which only
/// the first can be touched.
pub(crate) struct XdpPacket<'a, const PIECES: bool>(pub(crate) &'a XdpContext);

impl<const PIECES: bool> XdpPacket<'_, PIECES> {
    /// Where the frame begins. Read anew each time: the compiler would keep it
    /// as the word of 32 bits that it is in the context, which the verifier
    /// does not take for a pointer any more.
    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: a field of the context, which lives as long as the program runs.
        let data = unsafe { &raw const (*self.0.ctx).data };
        // SAFETY: as above.
        unsafe { data.read_volatile() as usize }
    }

    /// Where its first piece ends.
    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: as above.
        let data_end = unsafe { &raw const (*self.0.ctx).data_end };
        // SAFETY: as above.
        unsafe { data_end.read_volatile() as usize }
    }
}

impl<const PIECES: bool> Packet for XdpPacket<'_, PIECES> {
    #[inline(always)]
    fn at<H: Wire>(&mut self, offset: u32) -> Result<&mut H, Verdict> {
        const {
            assert!(
                size_of::<H>() > 1,
                "the verifier does not learn from a comparison about one byte"
            );
        }
        if offset > MAX_OFFSET {
            return Err(Verdict::Truncated);
        }
        let start = self.start() + offset as usize;
        if start + size_of::<H>() > self.end() {
            return Err(Verdict::Truncated);
        }
        let header = start as *mut H;
        // SAFETY: the header lies between data and data_end, as just compared;
        // `Wire` has alignment 1 and any bytes are a value; `&mut self` keeps
        // it the only reference.
        Ok(unsafe { &mut *header })
    }

    #[inline(always)]
    fn shift_head(&mut self, bytes: i32) -> Result<(), Verdict> {
        // SAFETY: the context is the one this program was called with; no
        // reference into the packet outlives the borrow of `self`.
        match unsafe { bpf_xdp_adjust_head(self.0.ctx, bytes.wrapping_neg()) } {
            0 => Ok(()),
            _ => Err(Verdict::NoHeadroom),
        }
    }

    #[inline(always)]
    fn cut_to(&mut self, length: u32) -> Result<(), Verdict> {
        // The compiler would subtract pointers as words of 32 bits, which the
        // verifier refuses.
        let now = black_box(self.length()) as u32;
        let change = length.wrapping_sub(now) as i32;
        if change >= 0 {
            return Ok(());
        }
        // SAFETY: as above.
        match unsafe { bpf_xdp_adjust_tail(self.0.ctx, change) } {
            0 => Ok(()),
            _ => Err(Verdict::Truncated),
        }
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        if PIECES {
            // SAFETY: the context is the one this program was called with.
            return unsafe { bpf_xdp_get_buff_len(self.0.ctx) };
        }
        // Now: the compiler would subtract where the length is used, and keep both
        // pointers until then; all that the verifier learns about the packet it
        // would learn about them, and so find no two ways through the program alike.
        black_box(self.end() - self.start()) as u64
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }
}
