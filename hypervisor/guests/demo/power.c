/* What the toolstack asks for in control/shutdown, and how the guest ends or is suspended. */
#include "net.h"

uint64_t resumes;
static struct watch watch;

/* Takes the request out in a transaction and empties the key, which acknowledges it. */
static void take_request(char *text, size_t size)
{
    for (int tries = 0; tries < 5; tries++) {
        uint32_t transaction = store_begin();
        store_in(transaction);
        int length = store_get(text, size, "control/shutdown");
        bool okay = length <= 0 || store_put("", "control/shutdown");
        store_in(0);
        if (store_end(transaction, length > 0 && okay) || length <= 0 || !okay)
            return;
    }
    text[0] = 0;
}

static void requested(struct watch *watch, const char *path)
{
    char text[16] = "";
    (void)watch, (void)path;
    take_request(text, sizeof text);
    if (!strcmp(text, "poweroff") || !strcmp(text, "halt"))
        power_off(SHUTDOWN_POWEROFF);
    else if (!strcmp(text, "reboot"))
        power_off(SHUTDOWN_REBOOT);
    else if (!strcmp(text, "suspend"))
        suspend();
}

void power_start(void)
{
    watch = (struct watch){.path = "control/shutdown", .changed = requested};
    watch_add(&watch);
}

/* Ends the domain once what was written to disks is safe. */
void power_off(uint32_t reason)
{
    static bool again;
    bool first = !again;
    again = true;
    for (uint32_t at = 0; at < DISKS && first; at++)
        if (disks[at].device && disks[at].connected && disks[at].can_flush && !(disks[at].info & VDISK_READONLY)) {
            struct transfer flush = {.disk = &disks[at], .operation = BLKIF_FLUSH};
            if (transfer_start(&flush))
                transfer_wait(&flush);
        }
    console_flush();
    shut_down(reason);
}

/* Everything that Xen and the toolstack know of us is gone: begin again with each part, in the order that they need. */
static void resume(void)
{
    platform_map_shared();
    events_forget();
    grants_resume();
    xenbus_forget();
    events_start();
    clock_resume();
    console_start();
    store_start();
    xenbus_resume();
    watches_resume();
    metrics_resume();
    resumes++;
}

/* Has Xen suspend the domain; returns when it goes on: true in a new domain, false in this one, with nothing changed.
 * Rings stay as they are: what is under way goes on, or is done again. */
bool suspend(void)
{
    uint32_t reason = SHUTDOWN_SUSPEND;
    console_flush();
    now();
    events_off();
    /* Xen is told where a paravirtual domain's start_info is, for what is new there after a restore. */
    bool cancelled = hypercall(HYPERCALL_SCHED, SCHEDOP_SHUTDOWN, &reason, paravirtual ? paravirtual_start_frame() : 0);
    if (!cancelled)
        resume();
    events_on();
    return !cancelled;
}
