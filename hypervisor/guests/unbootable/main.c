/* What a domain runs that has nothing to boot. It writes its command line to the console,
 * and then nothing ever happens in it, as on a machine whose firmware has found no bootable device. */
#include <stdbool.h>
#include "../demo/xen.h"

long hypercall(long number, long first, const void *second);
void unbootable_main(const struct hvm_start_info *info);

uint8_t hypercall_by_vmmcall;

static void find_hypercalls(void)
{
    uint32_t unused, vendor;
    __asm__ volatile("cpuid" : "=a"(unused), "=b"(vendor), "=c"(unused), "=d"(unused) : "a"(0), "c"(0));
    hypercall_by_vmmcall = vendor == 0x68747541 || vendor == 0x6F677948; /* "Auth", "Hygo" */
}

static uint64_t parameter(uint32_t index)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } param = {DOMID_SELF, 0, index, 0};
    return hypercall(HYPERCALL_HVM, HVMOP_GET_PARAM, &param) ? 0 : param.value;
}

/* Puts a character into the ring (public/io/console.h); what has no room is lost, for nobody waits here. */
static void put(volatile struct console_ring *ring, char character)
{
    uint32_t producer = ring->out_producer;
    if (producer - ring->out_consumer >= sizeof ring->out)
        return;
    ring->out[producer % sizeof ring->out] = character;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ring->out_producer = producer + 1;
}

void unbootable_main(const struct hvm_start_info *info)
{
    find_hypercalls();
    uint64_t frame = parameter(HVM_PARAM_CONSOLE_PFN);
    uint32_t port = (uint32_t)parameter(HVM_PARAM_CONSOLE_EVTCHN);
    if (info->magic != HVM_START_MAGIC || !info->command_line || !frame || !port)
        return;
    volatile struct console_ring *ring = (void *)(frame * PAGE);
    for (const char *text = (const char *)info->command_line; *text; text++) {
        if (*text == '\n')
            put(ring, '\r');
        put(ring, *text);
    }
    put(ring, '\r');
    put(ring, '\n');
    hypercall(HYPERCALL_EVENT, EVTCHNOP_SEND, &port);
}
