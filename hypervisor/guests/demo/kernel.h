/* What the parts of the guest offer each other. One CPU, one stack, no preemption: see main.c. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "xen.h"

#define VERSION_MAJOR 1
#define VERSION_MINOR 0
#define VERSION_MICRO 0
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define VERSION TEXT(VERSION_MAJOR) "." TEXT(VERSION_MINOR) "." TEXT(VERSION_MICRO)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define NANOSECONDS 1000000000ul
#define MILLISECONDS 1000000ul

/* text.c */
void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
int memcmp(const void *left, const void *right, size_t length);
size_t strlen(const char *text);
int strcmp(const char *left, const char *right);
bool starts_with(const char *text, const char *prefix);
bool parse_number(const char *text, uint64_t *number);
bool parse_size(const char *text, uint64_t *bytes);
bool parse_address(const char *text, uint32_t *address);
char *take_word(char **rest);
int format_list(char *to, size_t size, const char *format, __builtin_va_list values);
int format(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* console.c */
extern bool interrupted; /* Ctrl-C was typed; the shell clears it */
void console_start(void);
void console_flush(void);
int console_read(void);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* hypercall: entry.S; the rest: platform.c */
enum { EVENT_VECTOR = 0xF3, TRAPS = 32 };
extern uint8_t hypercall_by; /* 0: vmcall, 1: vmmcall, 2: syscall */
long hypercall(long number, ...);
bool platform_start(void);
void platform_map_shared(void);
bool hvm_param(uint32_t index, uint64_t *value);
bool add_to_physmap(uint32_t space, uint64_t index, uint64_t frame);
void shut_down(uint32_t reason) __attribute__((noreturn));
extern struct shared_info shared_info_page;
void events_off(void);
void events_on(void);
void events_on_and_halt(void);

/* paravirtual.c */
extern bool paravirtual;
void paravirtual_protect(void);
void paravirtual_map_rest(uint64_t top);
uint64_t paravirtual_free_start(void);
uint64_t paravirtual_mapped_end(void);
uint64_t paravirtual_start_frame(void);
bool paravirtual_map(void *page, uint64_t machine);
bool paravirtual_param(uint32_t index, uint64_t *value);
void paravirtual_map_shared(void);
bool paravirtual_map_grants(void *page, uint64_t index);

/* traps.c */
void traps_start(void);
void triple_fault(void) __attribute__((noreturn));

/* memory.c; frames are numbers of 4 KiB pages, and addresses are physical ones */
extern const char *command_line;
extern uint64_t memory_frames, memory_free;
void memory_start(const struct hvm_start_info *info);
void paravirtual_memory_start(const struct start_info *info);
uint64_t frame_take(void);
void frame_give(uint64_t frame);
uint64_t frames_take_high(uint64_t *top, uint32_t order);
static inline void *frame_address(uint64_t frame) { return (void *)(frame * PAGE); }

/* balloon.c */
extern uint64_t balloon_target;
void balloon_start(void);
void balloon_set(uint64_t frames);
bool balloon_work(void);
uint64_t balloon_current(void);

/* clock.c; times are nanoseconds since the guest booted, going on over suspends */
struct timer {
    uint64_t when; /* 0: not armed */
    void (*due)(void *argument);
    void *argument;
    struct timer *next;
};
void clock_start(void);
void clock_resume(void);
uint64_t now(void);
uint64_t wall_clock(void);
void timer_add(struct timer *timer);
bool timers_run(void);
void timer_arm(uint64_t when);
uint64_t timers_next(void);

/* events.c */
typedef void (*event_function)(void *argument);
extern volatile bool events_raised;
void events_start(void);
void events_forget(void);
bool events_deliver(void);
bool event_wait(bool (*ready)(void), uint64_t deadline);
void event_bind(uint32_t port, event_function function, void *argument);
uint32_t event_allocate(event_function function, void *argument);
void event_close(uint32_t port);
void event_send(uint32_t port);
uint32_t event_bind_timer(event_function function);

/* main.c: waiting */
void kernel_run(void) __attribute__((noreturn));
void poll(void);
bool wait_for(bool (*done)(void *argument), void *argument, uint64_t nanoseconds);
void pause_for(uint64_t nanoseconds);
void idle(uint64_t until);

/* grants.c */
void grants_resume(void);
uint32_t grant(uint64_t frame, bool read_only);
bool grant_end(uint32_t reference);
void grant_end_and_give(uint32_t reference, uint64_t frame);

/* xenstore.c */
struct watch {
    const char *path; /* kept by the caller */
    void (*changed)(struct watch *watch, const char *path);
    void *argument;
    bool set, fired, each; /* each: `changed` hears of every event at once, not of one for all */
};
extern uint32_t domid;
void store_start(void);
bool store_usable(void);
int store_get(char *value, size_t size, const char *path, ...) __attribute__((format(printf, 3, 4)));
uint64_t store_get_number(uint64_t missing, const char *path, ...) __attribute__((format(printf, 2, 3)));
bool store_put(const char *value, const char *path, ...) __attribute__((format(printf, 2, 3)));
bool store_remove(const char *path);
int store_list(const char *path, char *names, size_t size);
const char *store_error(void);
uint32_t store_begin(void);
bool store_end(uint32_t transaction, bool commit);
void store_in(uint32_t transaction);
bool watch_add(struct watch *watch);
void watch_remove(struct watch *watch);
bool watches_run(void);
void watches_resume(void);

/* xenbus.c */
struct device;
struct driver {
    const char *kind;
    int ready;                            /* the state in which our keys are complete */
    bool (*attach)(struct device *);      /* a new device: make `data` */
    bool (*connect)(struct device *);     /* make rings and write our keys */
    void (*connected)(struct device *);   /* the back serves, or has changed what it offers */
    void (*disconnect)(struct device *);  /* the rings are not used any more */
    bool (*busy)(struct device *);        /* something still waits for the back */
    void (*detach)(struct device *);      /* gone: free `data` */
};
struct device {
    const struct driver *driver;
    uint32_t number;
    char front[32], back[80], state_path[88];
    int state, back_state;
    bool linked, look;
    struct watch watch;
    void *data;
};
void xenbus_start(void);
void xenbus_forget(void);
void xenbus_resume(void);
bool xenbus_work(void);
bool xenbus_settled(void *unused);
extern const struct driver block_driver, net_driver;

/* block.c */
enum { DISKS = 16, BLOCK_DEPTH = 8 };
struct disk {
    struct device *device;
    char name[12];
    uint64_t sectors;
    uint32_t sector_size, info, in_flight;
    bool connected, can_flush, can_discard;
    uint64_t reads, writes, failures;
    struct block_ring *ring;
};
struct transfer {
    struct disk *disk;
    uint8_t operation, segments;
    int16_t status;
    enum { TRANSFER_FREE, TRANSFER_PENDING, TRANSFER_DONE } state;
    uint64_t sector, sectors;
    uint64_t frame[BLKIF_SEGMENTS];
    uint8_t last_sector[BLKIF_SEGMENTS];
    uint32_t grant[BLKIF_SEGMENTS];
};
extern struct disk disks[DISKS];
struct disk *disk_of(const char *name);
bool transfer_start(struct transfer *transfer);
int transfer_wait(struct transfer *transfer);

/* net.c: frames in and out of a NIC */
enum { NICS = 8, FRAME_MAX = 1514 };
struct nic {
    struct device *device;
    bool connected;
    uint8_t mac[6];
    uint32_t mtu;
    uint64_t received, sent, dropped;
    struct net_rings *rings;
    struct station *station;
};
extern struct nic nics[NICS];
uint8_t *net_buffer(struct nic *nic);
void net_send(struct nic *nic, uint32_t length);
