/* What depends on how the domain was started: by PVH, whose frames Xen translates, or paravirtual. */
#include "kernel.h"

uint8_t hypercall_by;

/* HVM_PARAM_CALLBACK_IRQ: type 2 in the top byte is a vector. */
#define CALLBACK_BY_VECTOR (2ul << 56)

static void cpuid(uint32_t leaf, uint32_t value[4])
{
    __asm__ volatile("cpuid" : "=a"(value[0]), "=b"(value[1]), "=c"(value[2]), "=d"(value[3]) : "a"(leaf), "c"(0));
}

/* Finds Xen; false when this is none. */
bool platform_start(void)
{
    uint32_t value[4];
    cpuid(0x40000000, value);
    bool xen = !memcmp(value + 1, "XenVMMXenVMM", 12);
    cpuid(0, value);
    hypercall_by = value[1] == 0x68747541 || value[1] == 0x6F677948; /* "Auth", "Hygo" */
    return xen;
}

bool hvm_param(uint32_t index, uint64_t *value)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } param = {DOMID_SELF, 0, index, *value};
    if (paravirtual)
        return paravirtual_param(index, value);
    bool okay = !hypercall(HYPERCALL_HVM, HVMOP_GET_PARAM, &param);
    *value = param.value;
    return okay;
}

bool add_to_physmap(uint32_t space, uint64_t index, uint64_t frame)
{
    if (paravirtual)
        return space == XENMAPSPACE_GRANT_TABLE && paravirtual_map_grants(frame_address(frame), index);
    struct add_to_physmap request = {DOMID_SELF, 0, space, index, frame};
    return !hypercall(HYPERCALL_MEMORY, XENMEM_ADD_TO_PHYSMAP, &request);
}

/* Puts Xen's shared page where ours is, and has events delivered; after each resume again. */
void platform_map_shared(void)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } param = {DOMID_SELF, 0, HVM_PARAM_CALLBACK_IRQ, CALLBACK_BY_VECTOR | EVENT_VECTOR};
    if (paravirtual)
        return paravirtual_map_shared();
    add_to_physmap(XENMAPSPACE_SHARED_INFO, 0, (uint64_t)&shared_info_page / PAGE);
    hypercall(HYPERCALL_HVM, HVMOP_SET_PARAM, &param);
}

/* Holds events back, lets them come, and waits for the next one: by the CPU's flag, or by Xen's own. */

void events_off(void)
{
    if (paravirtual)
        __atomic_store_n(&shared_info_page.vcpu[0].upcall_mask, 1, __ATOMIC_SEQ_CST);
    else
        __asm__ volatile("cli" ::: "memory");
}

void events_on(void)
{
    if (!paravirtual) {
        __asm__ volatile("sti" ::: "memory");
        return;
    }
    __atomic_store_n(&shared_info_page.vcpu[0].upcall_mask, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&shared_info_page.vcpu[0].upcall_pending, __ATOMIC_SEQ_CST))
        hypercall(HYPERCALL_VERSION, XENVER_VERSION, 0); /* events come when it ends */
}

void events_on_and_halt(void)
{
    if (paravirtual)
        hypercall(HYPERCALL_SCHED, SCHEDOP_BLOCK, 0);
    else
        __asm__ volatile("sti; hlt" ::: "memory");
}

/* Ends this domain; `reason` is one of SHUTDOWN_*. */
void shut_down(uint32_t reason)
{
    hypercall(HYPERCALL_SCHED, SCHEDOP_SHUTDOWN, &reason, 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}
