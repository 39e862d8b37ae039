/* The front's half of the xenbus handshake (public/io/xenbus.h), the same for all kinds of device.
 *
 * Devices are found by what stands below `device/<kind>`, which is watched, as is each back's state. `look` decides
 * by the states that both halves are in now, so that lost or doubled events do no harm. */
#include "kernel.h"

enum { DEVICES = 24, NAMES = 512 };

static struct device devices[DEVICES];
static const struct driver *const drivers[] = {&block_driver, &net_driver};
static struct watch found;
static bool scan_wanted;

static void set_state(struct device *device, int state)
{
    char text[4];
    device->state = state;
    format(text, sizeof text, "%d", state);
    store_put(text, "%s/state", device->front);
}

static void drop_rings(struct device *device)
{
    if (device->linked)
        device->driver->disconnect(device);
    device->linked = false;
}

static void remove_device(struct device *device)
{
    watch_remove(&device->watch);
    device->state = BUS_CLOSED; /* so that what waits for the back is given up */
    drop_rings(device);
    device->driver->detach(device);
    device->driver = NULL;
}

static void connect(struct device *device)
{
    if (device->linked || device->state != BUS_INITIALISING)
        return;
    device->linked = true;
    if (device->driver->connect(device))
        set_state(device, device->driver->ready);
    else
        drop_rings(device);
}

/* Closes once nothing waits for the back any more; until then we are called again. */
static void close(struct device *device)
{
    if (device->state == BUS_CLOSED)
        return;
    if (device->state != BUS_CLOSING)
        set_state(device, BUS_CLOSING);
    if (device->linked && device->back_state == BUS_CLOSING && device->driver->busy(device))
        return;
    drop_rings(device);
    set_state(device, BUS_CLOSED);
}

/* Does what the two states ask for. */
static void look(struct device *device)
{
    device->look = false;
    device->back_state = (int)store_get_number(BUS_UNKNOWN, "%s", device->state_path);
    switch (device->back_state) {
    case BUS_UNKNOWN: /* no node, or one that is not filled yet: gone only if ours is gone too */
        scan_wanted = true;
        break;
    case BUS_INIT_WAIT:
    case BUS_INITIALISED:
        connect(device);
        break;
    case BUS_CONNECTED:
        connect(device);
        if (device->linked) {
            device->driver->connected(device);
            if (device->state != BUS_CONNECTED)
                set_state(device, BUS_CONNECTED);
        }
        break;
    case BUS_CLOSING:
    case BUS_CLOSED:
        close(device);
        break;
    }
}

static void back_changed(struct watch *watch, const char *path)
{
    (void)path;
    look(watch->argument);
}

/* Learns who the back is; false when the toolstack has not said. */
static bool read_back(struct device *device)
{
    if (store_get(device->back, sizeof device->back, "%s/backend", device->front) <= 0)
        return false;
    format(device->state_path, sizeof device->state_path, "%s/state", device->back);
    return true;
}

static struct device *device_at(const struct driver *driver, uint32_t number)
{
    for (uint32_t at = 0; at < DEVICES; at++)
        if (devices[at].driver == driver && devices[at].number == number)
            return &devices[at];
    return NULL;
}

static void add_device(const struct driver *driver, uint32_t number)
{
    struct device *device = NULL;
    for (uint32_t at = 0; !device && at < DEVICES; at++)
        device = devices[at].driver ? NULL : &devices[at];
    if (!device)
        return;
    memset(device, 0, sizeof *device);
    device->number = number;
    device->state = BUS_INITIALISING;
    format(device->front, sizeof device->front, "device/%s/%u", driver->kind, number);
    if (!read_back(device) || !driver->attach(device))
        return;
    device->driver = driver;
    device->watch = (struct watch){.path = device->state_path, .changed = back_changed, .argument = device};
    /* A front that is not Initialising is one that an earlier kernel has left. */
    if (store_get_number(BUS_INITIALISING, "%s/state", device->front) != BUS_INITIALISING)
        set_state(device, BUS_INITIALISING);
    watch_add(&device->watch);
}

/* True for a device that was taken away, or closed and then put into the same place anew. */
static bool is_gone(struct device *device)
{
    char back[sizeof device->back];
    if (store_get(back, sizeof back, "%s/backend", device->front) <= 0)
        return true;
    return device->state == BUS_CLOSED && store_get_number(0, "%s/state", device->front) == BUS_INITIALISING;
}

static void scan(void)
{
    char path[16], names[NAMES];
    scan_wanted = false;
    for (uint32_t at = 0; at < DEVICES; at++)
        if (devices[at].driver && is_gone(&devices[at]))
            remove_device(&devices[at]);
    for (uint32_t kind = 0; kind < COUNT_OF(drivers); kind++) {
        uint64_t number;
        format(path, sizeof path, "device/%s", drivers[kind]->kind);
        int length = store_list(path, names, sizeof names);
        for (int at = 0; at < length; at += (int)strlen(names + at) + 1)
            if (parse_number(names + at, &number) && !device_at(drivers[kind], (uint32_t)number))
                add_device(drivers[kind], (uint32_t)number);
    }
}

static void devices_changed(struct watch *watch, const char *path)
{
    (void)watch, (void)path;
    scan_wanted = true;
}

/* Does what watches and drivers have asked for; tells whether there was anything. */
bool xenbus_work(void)
{
    bool any = scan_wanted;
    if (scan_wanted)
        scan();
    for (uint32_t at = 0; at < DEVICES; at++)
        if (devices[at].driver && devices[at].look) {
            look(&devices[at]);
            any = true;
        }
    return any;
}

/* True when no device is on its way to be connected. */
bool xenbus_settled(void *unused)
{
    (void)unused;
    for (uint32_t at = 0; at < DEVICES; at++)
        if (devices[at].driver && devices[at].state != BUS_CONNECTED && devices[at].state != BUS_CLOSED)
            return false;
    return !scan_wanted;
}

void xenbus_start(void)
{
    found = (struct watch){.path = "device", .changed = devices_changed};
    watch_add(&found);
    scan();
}

/* In a new domain Xen knows nothing of our rings: let go of them, before anything is bound or granted anew. */
void xenbus_forget(void)
{
    for (uint32_t at = 0; at < DEVICES; at++)
        if (devices[at].driver)
            drop_rings(&devices[at]);
}

/* The backs are others too. Watches are set again after this, so that they have the right paths. */
void xenbus_resume(void)
{
    for (uint32_t at = 0; at < DEVICES; at++) {
        struct device *device = &devices[at];
        if (!device->driver || !read_back(device))
            continue;
        if (device->state != BUS_CLOSED)
            set_state(device, BUS_INITIALISING);
        device->look = true;
    }
    scan_wanted = true;
}
