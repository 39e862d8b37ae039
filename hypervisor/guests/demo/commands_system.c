/* Commands for the guest itself: what it is, its memory, its time, and its end. */
#include "net.h"

enum { TICK_MS = 100 };

static void info_command(char *arguments)
{
    char extra[16] = "", name[64], uuid[33];
    uint8_t bytes[16] = {0};
    (void)arguments;
    long version = hypercall(HYPERCALL_VERSION, XENVER_VERSION, 0);
    hypercall(HYPERCALL_VERSION, XENVER_EXTRAVERSION, extra);
    hypercall(HYPERCALL_VERSION, XENVER_GUEST_HANDLE, bytes);
    for (uint32_t at = 0; at < 16; at++)
        format(uuid + 2 * at, 3, "%02x", bytes[at]);
    store_get(name, sizeof name, "name");
    print("version: %s\r\nxen: %ld.%ld%s\r\n", VERSION, version >> 16, version & 0xFFFF, extra);
    print("boot: %s\r\ndomid: %u\r\nuuid: ", paravirtual ? "pv" : "pvh", domid);
    for (uint32_t at = 0; at < 32; at++)
        print("%s%c", at == 8 || at == 12 || at == 16 || at == 20 ? "-" : "", uuid[at]);
    print("\r\nname: %s\r\nvcpus: 1\r\nmemory-kib: %lu\r\nuptime-ms: %lu\r\ntime-s: %lu\r\nresumes: %lu\r\n", name,
          memory_frames * 4, now() / MILLISECONDS, wall_clock() / NANOSECONDS, resumes);
    print("command-line: %s\r\n", command_line);
}

static void mem_command(char *arguments)
{
    (void)arguments;
    print("total-kib: %lu\r\nfree-kib: %lu\r\nheld-kib: %lu\r\ntarget-kib: %lu\r\n", memory_frames * 4,
          memory_free * 4, balloon_current() * 4, balloon_target * 4);
}

static bool balloon_there(void *unused)
{
    (void)unused;
    return balloon_current() == balloon_target;
}

/* Sets the target as the toolstack would; it holds until that writes another. */
static void balloon_command(char *arguments)
{
    uint64_t mib;
    if (!parse_number(take_word(&arguments), &mib) || !mib || mib >> 32) {
        print("error: usage: balloon MIB\r\n");
        return;
    }
    balloon_set(mib * 256);
    bool okay = wait_for(balloon_there, NULL, 5 * NANOSECONDS);
    print("held-kib: %lu\r\ndone: %s\r\n", balloon_current() * 4, okay ? "ok" : "not reached");
}

/* Frames that `touch` has dirtied, linked through their second words; the first ones are checked. */
static uint64_t touched, touched_count;

static uint64_t touch_value(uint64_t frame) { return frame * 0x9E3779B97F4A7C15ul ^ 0x746F756368ul; }

static void touch_command(char *arguments)
{
    uint64_t mib, top = UINT64_MAX;
    if (!parse_number(take_word(&arguments), &mib) || mib >> 32) {
        print("error: usage: touch MIB\r\n");
        return;
    }
    while (touched) {
        uint64_t frame = touched;
        touched = ((uint64_t *)frame_address(frame))[1];
        frame_give(frame);
    }
    for (touched_count = 0; touched_count < mib * 256; touched_count++) {
        uint64_t frame = frames_take_high(&top, 0);
        if (!frame)
            break;
        uint64_t *words = frame_address(frame);
        words[0] = touch_value(frame);
        words[1] = touched;
        touched = frame;
    }
    print("touched-kib: %lu\r\n", touched_count * 4);
}

/* Looks whether what `touch` wrote is still there. */
static void touched_command(char *arguments)
{
    uint64_t count = 0, bad = 0;
    (void)arguments;
    for (uint64_t frame = touched; frame && count < touched_count; count++) {
        const uint64_t *words = frame_address(frame);
        bad += words[0] != touch_value(frame);
        frame = words[1];
    }
    bad += touched_count - count;
    print("touched-kib: %lu\r\nbad-frames: %lu\r\n", touched_count * 4, bad);
}

/* Counts in a loop, and says each second how far it came: what share of a CPU it gets. */
static void spin_command(char *arguments)
{
    uint64_t seconds, total = 0;
    if (!parse_number(take_word(&arguments), &seconds) || seconds >> 32) {
        print("error: usage: spin SECONDS\r\n");
        return;
    }
    uint64_t start = now(), second = start, before = 0;
    while (now() - start < seconds * NANOSECONDS && !interrupted) {
        for (uint32_t count = 0; count < 1000000; count++)
            __asm__ volatile("");
        total++;
        poll();
        if (now() - second >= NANOSECONDS) {
            print("million-per-s: %lu\r\n", (total - before) * NANOSECONDS / (now() - second));
            console_flush();
            before = total;
            second = now();
        }
    }
    print("millions: %lu\r\nms: %lu\r\n", total, (now() - start) / MILLISECONDS);
}

static uint64_t counter;
static struct timer counter_timer;

static void count(void *unused)
{
    (void)unused;
    counter++;
    counter_timer.when = now() + TICK_MS * MILLISECONDS;
}

/* Shows a counter of tenths of seconds; the first look starts it. */
static void counter_command(char *arguments)
{
    static bool added;
    if (!strcmp(take_word(&arguments), "stop")) {
        counter_timer.when = 0;
    } else if (!counter_timer.when) {
        counter_timer.due = count;
        if (!added)
            timer_add(&counter_timer);
        added = true;
        counter_timer.when = now() + TICK_MS * MILLISECONDS;
    }
    print("counter: %lu\r\n", counter);
}

static void sleep_command(char *arguments)
{
    uint64_t seconds;
    if (!parse_number(take_word(&arguments), &seconds) || seconds >> 32) {
        print("error: usage: sleep SECONDS\r\n");
        return;
    }
    uint64_t start = now();
    pause_for(seconds * NANOSECONDS);
    print("slept-ms: %lu\r\n", (now() - start) / MILLISECONDS);
}

static void suspend_command(char *arguments)
{
    (void)arguments;
    bool resumed = suspend();
    print("suspended: %s\r\n", resumed ? "resumed" : "cancelled");
}

static void crash_command(char *arguments)
{
    (void)arguments;
    console_flush();
    shut_down(SHUTDOWN_CRASH);
}

/* Writes to an address that is not mapped: the exception's report and a crash. */
static void fault_command(char *arguments)
{
    (void)arguments;
    __asm__ volatile("movq $0, 8" ::: "memory");
}

static void panic_command(char *arguments)
{
    (void)arguments;
    console_flush();
    triple_fault();
}

static void poweroff_command(char *arguments)
{
    (void)arguments;
    power_off(SHUTDOWN_POWEROFF);
}

static void reboot_command(char *arguments)
{
    (void)arguments;
    power_off(SHUTDOWN_REBOOT);
}

const struct command system_commands[] = {
    {"help", "", NULL}, /* the shell's own */
    {"info", "", info_command},
    {"mem", "", mem_command},
    {"balloon", "MIB", balloon_command},
    {"touch", "MIB", touch_command},
    {"touched", "", touched_command},
    {"spin", "SECONDS", spin_command},
    {"counter", "[stop]", counter_command},
    {"sleep", "SECONDS", sleep_command},
    {"suspend", "", suspend_command},
    {"crash", "", crash_command},
    {"fault", "", fault_command},
    {"panic", "", panic_command},
    {"poweroff", "", poweroff_command},
    {"reboot", "", reboot_command},
    {NULL, NULL, NULL},
};
