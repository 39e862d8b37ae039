/* The parts of Xen's public interface that this guest uses, written from its facts (public/xen.h and others). */
#pragma once
#include <stdint.h>

enum { DOMID_SELF = 0x7FF0, PAGE = 4096 };

/* Hypercall numbers: __HYPERVISOR_* of public/xen.h. */
enum {
    HYPERCALL_SET_TRAP_TABLE = 0, HYPERCALL_MMU_UPDATE = 1, HYPERCALL_SET_CALLBACKS = 4, HYPERCALL_MEMORY = 12,
    HYPERCALL_UPDATE_VA_MAPPING = 14, HYPERCALL_VERSION = 17, HYPERCALL_CONSOLE = 18, HYPERCALL_GRANT_TABLE = 20,
    HYPERCALL_VCPU = 24, HYPERCALL_MMUEXT = 26, HYPERCALL_SCHED = 29, HYPERCALL_EVENT = 32, HYPERCALL_HVM = 34,
};

enum { XENVER_VERSION = 0, XENVER_EXTRAVERSION = 1, XENVER_GUEST_HANDLE = 8 };
enum { VCPUOP_SET_SINGLESHOT_TIMER = 8, VCPUOP_STOP_SINGLESHOT_TIMER = 9 };
enum { SCHEDOP_BLOCK = 1, SCHEDOP_SHUTDOWN = 2 };
enum { MMUEXT_TLB_FLUSH_LOCAL = 6, GNTTABOP_SETUP_TABLE = 2, FLAT_KERNEL_CODE = 0xE033 };
enum { SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND, SHUTDOWN_CRASH };
enum {
    EVTCHNOP_BIND_VIRQ = 1, EVTCHNOP_CLOSE = 3, EVTCHNOP_SEND = 4, EVTCHNOP_ALLOC_UNBOUND = 6, EVTCHNOP_UNMASK = 9,
};
enum { VIRQ_TIMER = 0 };
enum { HVMOP_SET_PARAM = 0, HVMOP_GET_PARAM = 1 };
enum {
    HVM_PARAM_CALLBACK_IRQ = 0, HVM_PARAM_STORE_PFN = 1, HVM_PARAM_STORE_EVTCHN = 2, HVM_PARAM_CONSOLE_PFN = 17,
    HVM_PARAM_CONSOLE_EVTCHN = 18,
};
enum { XENMEM_DECREASE_RESERVATION = 1, XENMEM_CURRENT_RESERVATION = 3, XENMEM_POPULATE_PHYSMAP = 6,
       XENMEM_ADD_TO_PHYSMAP = 7 };
enum { XENMAPSPACE_SHARED_INFO = 0, XENMAPSPACE_GRANT_TABLE = 1 };

/* public/arch-x86/hvm/start_info.h */
enum { HVM_START_MAGIC = 0x336EC578, HVM_MEMMAP_RAM = 1 };

struct hvm_start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

struct hvm_memory_map_entry {
    uint64_t start, size;
    uint32_t kind, reserved;
};

/* public/xen.h: what a paravirtual kernel finds; addresses are virtual ones, but for shared_info */
struct start_info {
    char magic[32];
    uint64_t nr_pages, shared_info;
    uint32_t flags;
    uint64_t store_frame;
    uint32_t store_port;
    uint64_t console_frame;
    uint32_t console_port;
    uint64_t pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
    char command_line[1024];
    uint64_t first_p2m_pfn, nr_p2m_frames;
};

/* public/xen.h, for x86-64 with the 2-level event ABI. */
struct vcpu_time_info {
    uint32_t version, pad;
    uint64_t tsc_timestamp, system_time;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad1[2];
};

struct vcpu_info {
    uint8_t upcall_pending, upcall_mask, pad[6];
    uint64_t pending_selector, cr2, pad1;
    struct vcpu_time_info time;
};

struct shared_info {
    struct vcpu_info vcpu[32];
    uint64_t pending[64], mask[64];
    uint32_t wall_version, wall_seconds, wall_nanoseconds, wall_seconds_high;
};

struct add_to_physmap {
    uint16_t domid, size;
    uint32_t space;
    uint64_t index, frame;
};

struct memory_reservation {
    uint64_t *extents, count;
    uint32_t order, flags;
    uint16_t domid;
};

/* public/grant_table.h, version 1 */
enum { GTF_PERMIT_ACCESS = 1, GTF_READONLY = 4, GTF_READING = 8, GTF_WRITING = 16 };
enum { GRANTS_PER_FRAME = PAGE / 8 };

struct grant_entry {
    uint16_t flags, domid;
    uint32_t frame;
};

/* public/io/console.h */
struct console_ring {
    char in[1024], out[2048];
    uint32_t in_consumer, in_producer, out_consumer, out_producer;
};

/* public/io/xs_wire.h */
enum { XS_RING = 1024, XS_PAYLOAD_MAX = 4096 };
enum {
    XS_DIRECTORY = 1, XS_READ = 2, XS_WATCH = 4, XS_UNWATCH = 5, XS_TRANSACTION_START = 6, XS_TRANSACTION_END = 7,
    XS_WRITE = 11, XS_RM = 13, XS_WATCH_EVENT = 15, XS_ERROR = 16,
};

struct xs_ring {
    char request[XS_RING], reply[XS_RING];
    uint32_t request_consumer, request_producer, reply_consumer, reply_producer;
};

struct xs_header {
    uint32_t type, request, transaction, length;
};

/* public/io/xenbus.h */
enum {
    BUS_UNKNOWN, BUS_INITIALISING, BUS_INIT_WAIT, BUS_INITIALISED, BUS_CONNECTED, BUS_CLOSING, BUS_CLOSED,
};

/* public/io/ring.h: the header of every shared ring; the slots follow. */
struct ring_header {
    uint32_t request_producer, request_event, response_producer, response_event;
    uint8_t pad[48];
};

/* public/io/blkif.h */
enum { BLKIF_READ = 0, BLKIF_WRITE = 1, BLKIF_FLUSH = 3, BLKIF_DISCARD = 5, BLKIF_SEGMENTS = 11 };
enum { BLKIF_OKAY = 0, BLKIF_ERROR = -1, BLKIF_NOT_SUPPORTED = -2 };
enum { VDISK_CDROM = 1, VDISK_REMOVABLE = 2, VDISK_READONLY = 4 };

struct blkif_segment {
    uint32_t grant;
    uint8_t first_sector, last_sector, pad[2];
};

union blkif_slot {
    struct {
        uint8_t operation, segments;
        uint16_t handle;
        uint64_t id, sector;
        struct blkif_segment segment[BLKIF_SEGMENTS];
    } request;
    struct {
        uint8_t operation, flag;
        uint16_t handle;
        uint64_t id, sector, sectors;
    } discard;
    struct {
        uint64_t id;
        uint8_t operation, pad;
        int16_t status;
    } response;
};

/* public/io/netif.h */
enum { NETTX_CSUM_BLANK = 1, NETTX_DATA_VALIDATED = 2, NETTX_MORE_DATA = 4, NETTX_EXTRA_INFO = 8 };
enum { NETRX_DATA_VALIDATED = 1, NETRX_CSUM_BLANK = 2, NETRX_MORE_DATA = 4, NETRX_EXTRA_INFO = 8 };

union net_tx_slot {
    struct {
        uint32_t grant;
        uint16_t offset, flags, id, size;
    } request;
    struct {
        uint16_t id;
        int16_t status;
    } response;
};

union net_rx_slot {
    struct {
        uint16_t id, pad;
        uint32_t grant;
    } request;
    struct {
        uint16_t id, offset, flags;
        int16_t status;
    } response;
};

_Static_assert(sizeof(struct hvm_start_info) == 56, "hvm_start_info");
_Static_assert(sizeof(struct start_info) == 1168, "start_info");
_Static_assert(sizeof(struct vcpu_info) == 64, "vcpu_info");
_Static_assert(sizeof(struct ring_header) == 64, "ring header");
_Static_assert(sizeof(union blkif_slot) == 112, "blkif slot");
_Static_assert(sizeof(union net_tx_slot) == 12, "tx slot");
_Static_assert(sizeof(union net_rx_slot) == 8, "rx slot");
