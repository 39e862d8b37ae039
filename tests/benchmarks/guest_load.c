/* What makes a Linux guest's disks and networks busy, without a C library: static, a few KB, put into the initrd.
 *
 *   load disk FILE SIZE DEPTH SECONDS r|w random|next   O_DIRECT transfers, DEPTH at a time; prints operations, ns
 *   load send ADDRESS PORT SIZE SECONDS                 UDP datagrams as fast as they go; prints packets, ns
 *   load take PORT SECONDS                              counts datagrams from the first on; prints packets, bytes, ns
 */
#include <linux/aio_abi.h>
#include <linux/fcntl.h>
#include <linux/in.h>
#include <linux/socket.h>
#include <linux/time.h>
#include <stdint.h>
#include <sys/syscall.h>

enum { STREAM = 1, DATAGRAM = 2, MOST_DEPTH = 64, MOST_SIZE = 1 << 20 };
#define DIRECT 040000
#define SECOND 1000000000ul

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The compiler may call these by itself. */
void *memset(void *to, int value, unsigned long length)
{
    for (char *at = to; length--;)
        *at++ = (char)value;
    return to;
}

static uint64_t now(void)
{
    struct { long seconds, nanoseconds; } time;
    call(SYS_clock_gettime, 1, (long)&time, 0, 0, 0, 0);
    return (uint64_t)time.seconds * SECOND + (uint64_t)time.nanoseconds;
}

static void say(const char *name, uint64_t value)
{
    char text[64], digits[24];
    int length = 0, count = 0;
    while (*name)
        text[length++] = *name++;
    text[length++] = ':';
    text[length++] = ' ';
    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count)
        text[length++] = digits[--count];
    text[length++] = '\n';
    call(SYS_write, 1, (long)text, length, 0, 0, 0);
}

static void fail(long code)
{
    say("error", (uint64_t)-code);
    call(SYS_exit, 1, 0, 0, 0, 0, 0);
}

static uint64_t number(const char *text)
{
    uint64_t value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint64_t)(*text++ - '0');
    return value;
}

static uint32_t address(const char *text)
{
    uint32_t value = 0;
    for (int part = 0; part < 4; part++) {
        value |= (uint32_t)number(text) << 8 * part;
        while (*text && *text++ != '.') {}
    }
    return value;
}

static uint64_t state = 88172645463325252ul;

static uint64_t random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static char buffers[MOST_DEPTH << 12] __attribute__((aligned(4096)));
static char large[4 * MOST_SIZE] __attribute__((aligned(4096)));
static struct iocb blocks[MOST_DEPTH];

/* Keeps DEPTH transfers under way, each at a place of its own. */
static void disk(const char *file, uint64_t size, uint64_t depth, uint64_t seconds, int write, int next)
{
    long fd = call(SYS_open, (long)file, (write ? O_RDWR : O_RDONLY) | DIRECT, 0, 0, 0, 0);
    if (fd < 0)
        fail(fd);
    if (size > MOST_SIZE || depth > MOST_DEPTH || (size > 4096 && depth > 4))
        fail(-22);
    uint64_t places = (uint64_t)call(SYS_lseek, fd, 0, 2, 0, 0, 0) / size, at = 0, done = 0, under_way = 0;
    aio_context_t context = 0;
    long result = call(SYS_io_setup, MOST_DEPTH, (long)&context, 0, 0, 0, 0);
    if (result < 0)
        fail(result);
    struct io_event events[MOST_DEPTH];
    uint64_t start = now(), end = start + seconds * SECOND, ended;
    for (uint64_t slot = 0; slot < depth; slot++)
        events[slot].data = slot;
    long fresh = (long)depth;
    do {
        struct iocb *submitted[MOST_DEPTH];
        for (long count = 0; count < fresh; count++) {
            uint64_t slot = events[count].data;
            struct iocb *block = &blocks[slot];
            *block = (struct iocb){.aio_data = slot, .aio_fildes = (uint32_t)fd, .aio_nbytes = size};
            block->aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            block->aio_buf = (uint64_t)(size > 4096 ? large + slot * MOST_SIZE : buffers + (slot << 12));
            block->aio_offset = (long)((next ? at++ % places : random() % places) * size);
            submitted[count] = block;
        }
        if (fresh && (result = call(SYS_io_submit, (long)context, fresh, (long)submitted, 0, 0, 0)) != fresh)
            fail(result < 0 ? result : -5);
        under_way += (uint64_t)fresh;
        fresh = call(SYS_io_getevents, (long)context, 1, MOST_DEPTH, (long)events, 0, 0);
        if (fresh < 0)
            fail(fresh);
        for (long count = 0; count < fresh; count++)
            if (events[count].res != (int64_t)size)
                fail(events[count].res < 0 ? (long)events[count].res : -5);
        done += (uint64_t)fresh;
        under_way -= (uint64_t)fresh;
        ended = now();
    } while (ended < end);
    say("operations", done);
    say("ns", ended - start);
    while (under_way) {
        fresh = call(SYS_io_getevents, (long)context, 1, MOST_DEPTH, (long)events, 0, 0);
        if (fresh < 0)
            fail(fresh);
        under_way -= (uint64_t)fresh;
    }
}

static struct sockaddr_in place(uint32_t to, uint64_t port)
{
    struct sockaddr_in place = {.sin_family = 2, .sin_addr = {to}};
    place.sin_port = (uint16_t)(port >> 8 | port << 8);
    return place;
}

static void send(uint32_t to, uint64_t port, uint64_t size, uint64_t seconds)
{
    long fd = call(SYS_socket, 2, DATAGRAM, 0, 0, 0, 0);
    struct sockaddr_in there = place(to, port);
    uint64_t start = now(), sent = 0, ended;
    do {
        for (int count = 0; count < 16; count++) {
            long result = call(SYS_sendto, fd, (long)large, (long)size, 0, (long)&there, sizeof there);
            if (result < 0)
                fail(result);
            sent++;
        }
        ended = now();
    } while (ended - start < seconds * SECOND);
    say("packets", sent);
    say("ns", ended - start);
}

static void take(uint64_t port, uint64_t seconds)
{
    long fd = call(SYS_socket, 2, DATAGRAM, 0, 0, 0, 0);
    struct sockaddr_in here = place(0, port);
    struct { long seconds, microseconds; } patience = {1, 0};
    long result = call(SYS_bind, fd, (long)&here, sizeof here, 0, 0, 0);
    if (result < 0)
        fail(result);
    uint64_t packets = 0, bytes = 0, start = 0, last = 0;
    say("ready", 1);
    do {
        result = call(SYS_recvfrom, fd, (long)large, MOST_SIZE, 0, 0, 0);
        last = now();
        if (!packets++) {
            start = last;
            call(SYS_setsockopt, fd, 1, 20, (long)&patience, sizeof patience, 0);
        }
        bytes += (uint64_t)result;
    } while (result > 0 && last - start < seconds * SECOND);
    say("packets", packets - (result <= 0));
    say("bytes", bytes - (result <= 0 ? (uint64_t)result : 0));
    say("ns", last - start - (result <= 0 ? SECOND : 0));
}

__attribute__((used)) static void run(long *stack)
{
    char **words = (char **)(stack + 1);
    if (stack[0] == 8 && words[1][0] == 'd')
        disk(words[2], number(words[3]), number(words[4]), number(words[5]), words[6][0] == 'w', words[7][0] == 'n');
    else if (stack[0] == 6 && words[1][0] == 's')
        send(address(words[2]), number(words[3]), number(words[4]), number(words[5]));
    else if (stack[0] == 4 && words[1][0] == 't')
        take(number(words[2]), number(words[3]));
    else
        fail(-22);
    call(SYS_exit, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall run\n");
