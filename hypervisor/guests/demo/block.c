/* Disks: the block front (public/io/blkif.h), one ring of one page each.
 *
 * A transfer is up to eleven frames. It is pending until the back has answered, over a suspend too: then it is put
 * into the new ring once that is connected. */
#include "kernel.h"

enum { SLOTS = 32, PATIENCE_SECONDS = 10 };

struct block_ring {
    struct ring_header *header; /* NULL: none */
    uint64_t frame;
    uint32_t grant, port, producer, consumer;
    struct transfer *pending[SLOTS];
};

struct disk disks[DISKS];
static struct block_ring rings[DISKS];

static union blkif_slot *slot_at(struct block_ring *ring, uint32_t index)
{
    return (union blkif_slot *)(ring->header + 1) + index % SLOTS;
}

static void finish(struct transfer *transfer, int status)
{
    struct disk *disk = transfer->disk;
    for (uint32_t at = 0; at < transfer->segments; at++)
        grant_end(transfer->grant[at]);
    transfer->status = (int16_t)status;
    transfer->state = TRANSFER_DONE;
    disk->in_flight--;
    disk->reads += transfer->operation == BLKIF_READ;
    disk->writes += transfer->operation == BLKIF_WRITE;
    disk->failures += status != BLKIF_OKAY;
}

static void block_event(void *argument)
{
    struct disk *disk = argument;
    struct block_ring *ring = disk->ring;
    struct ring_header *header = ring->header;
    do {
        uint32_t end = __atomic_load_n(&header->response_producer, __ATOMIC_SEQ_CST);
        for (; ring->consumer != end; ring->consumer++) {
            union blkif_slot *slot = slot_at(ring, ring->consumer);
            uint64_t id = slot->response.id;
            struct transfer *transfer = id < SLOTS ? ring->pending[id] : NULL;
            if (!transfer)
                continue;
            ring->pending[id] = NULL;
            finish(transfer, slot->response.status);
        }
        __atomic_store_n(&header->response_event, ring->consumer + 1, __ATOMIC_SEQ_CST);
    } while (ring->consumer != __atomic_load_n(&header->response_producer, __ATOMIC_SEQ_CST));
    if (!disk->in_flight && disk->device->state == BUS_CLOSING)
        disk->device->look = true;
}

/* Puts a pending transfer into the ring. There is a slot for each place in `pending`. */
static void put(struct block_ring *ring, struct transfer *transfer, uint32_t id)
{
    union blkif_slot *slot = slot_at(ring, ring->producer);
    memset(slot, 0, sizeof *slot);
    slot->request.operation = transfer->operation;
    slot->request.handle = (uint16_t)transfer->disk->device->number;
    slot->request.id = id;
    slot->request.sector = transfer->sector;
    if (transfer->operation == BLKIF_DISCARD) {
        slot->discard.sectors = transfer->sectors;
    } else {
        slot->request.segments = transfer->segments;
        for (uint32_t at = 0; at < transfer->segments; at++) {
            transfer->grant[at] = grant(transfer->frame[at], transfer->operation == BLKIF_WRITE);
            slot->request.segment[at].grant = transfer->grant[at];
            slot->request.segment[at].last_sector = transfer->last_sector[at];
        }
    }
    uint32_t before = ring->header->request_producer;
    ring->producer++;
    __atomic_store_n(&ring->header->request_producer, ring->producer, __ATOMIC_SEQ_CST);
    if (ring->producer - __atomic_load_n(&ring->header->request_event, __ATOMIC_SEQ_CST) < ring->producer - before)
        event_send(ring->port);
}

static int free_slot(struct block_ring *ring)
{
    for (int id = 0; id < SLOTS; id++)
        if (!ring->pending[id])
            return id;
    return -1;
}

static bool is_lost(struct disk *disk)
{
    return !disk->device || disk->device->state >= BUS_CLOSING;
}

static bool can_start(void *argument)
{
    struct disk *disk = argument;
    return is_lost(disk) || (disk->connected && free_slot(disk->ring) >= 0);
}

/* Begins a transfer whose segments are filled in, once the disk is connected and has room; false: the disk is lost. */
bool transfer_start(struct transfer *transfer)
{
    struct disk *disk = transfer->disk;
    transfer->state = TRANSFER_DONE;
    transfer->status = BLKIF_ERROR;
    if (!wait_for(can_start, disk, PATIENCE_SECONDS * NANOSECONDS) || is_lost(disk))
        return false;
    int id = free_slot(disk->ring);
    transfer->state = TRANSFER_PENDING;
    disk->ring->pending[id] = transfer;
    disk->in_flight++;
    put(disk->ring, transfer, (uint32_t)id);
    return true;
}

static bool is_done(void *argument)
{
    struct transfer *transfer = argument;
    return transfer->state != TRANSFER_PENDING;
}

/* Waits, whatever is typed meanwhile: the back may still write into the frames. Returns BLKIF_*. */
int transfer_wait(struct transfer *transfer)
{
    while (transfer->state == TRANSFER_PENDING)
        wait_for(is_done, transfer, UINT64_MAX);
    transfer->state = TRANSFER_FREE;
    return transfer->status;
}

/* Names are as Linux has them: xvda for 51712, and so on (docs/man/xen-vbd-interface.7). */
static void name_disk(struct disk *disk, uint64_t number)
{
    uint64_t unit = number >> 28 ? (number & 0xFFFFFFF) >> 8 : (number & 0xFF) >> 4;
    uint64_t partition = number >> 28 ? number & 0xFF : number & 0xF;
    char letters[4] = {0};
    uint32_t at = 3;
    for (unit++; unit && at; unit = (unit - 1) / 26)
        letters[--at] = (char)('a' + (unit - 1) % 26);
    if (partition)
        format(disk->name, sizeof disk->name, "xvd%s%lu", letters + at, partition);
    else
        format(disk->name, sizeof disk->name, "xvd%s", letters + at);
}

struct disk *disk_of(const char *name)
{
    for (uint32_t at = 0; at < DISKS; at++)
        if (disks[at].device && !strcmp(disks[at].name, name))
            return &disks[at];
    return NULL;
}

static bool attach(struct device *device)
{
    for (uint32_t at = 0; at < DISKS; at++)
        if (!disks[at].device) {
            disks[at] = (struct disk){.device = device, .ring = &rings[at]};
            memset(&rings[at], 0, sizeof rings[at]);
            name_disk(&disks[at], store_get_number(device->number, "%s/virtual-device", device->front));
            device->data = &disks[at];
            return true;
        }
    return false;
}

static bool connect(struct device *device)
{
    struct disk *disk = device->data;
    struct block_ring *ring = disk->ring;
    char text[12];
    ring->frame = frame_take();
    ring->header = frame_address(ring->frame);
    memset(ring->header, 0, PAGE);
    ring->header->request_event = ring->header->response_event = 1;
    ring->producer = ring->consumer = 0;
    ring->grant = grant(ring->frame, false);
    ring->port = event_allocate(block_event, disk);
    format(text, sizeof text, "%u", ring->grant);
    bool okay = store_put(text, "%s/ring-ref", device->front);
    format(text, sizeof text, "%u", ring->port);
    return okay && store_put(text, "%s/event-channel", device->front) &&
           store_put("x86_64-abi", "%s/protocol", device->front);
}

/* Reads what the disk is now: at first, and again when it was resized or its medium changed. */
static void connected(struct device *device)
{
    struct disk *disk = device->data;
    disk->sectors = store_get_number(0, "%s/sectors", device->back);
    disk->sector_size = (uint32_t)store_get_number(512, "%s/sector-size", device->back);
    disk->info = (uint32_t)store_get_number(0, "%s/info", device->back);
    disk->can_flush = store_get_number(0, "%s/feature-flush-cache", device->back);
    disk->can_discard = store_get_number(0, "%s/feature-discard", device->back);
    if (disk->connected)
        return;
    disk->connected = true;
    for (uint32_t id = 0; id < SLOTS; id++) /* what a suspend has interrupted */
        if (disk->ring->pending[id])
            put(disk->ring, disk->ring->pending[id], id);
}

/* Lets go of the ring; unless the domain is a new one, what is pending cannot be answered any more. */
static void disconnect(struct device *device)
{
    struct disk *disk = device->data;
    struct block_ring *ring = disk->ring;
    event_close(ring->port);
    grant_end_and_give(ring->grant, ring->frame);
    ring->header = NULL;
    disk->connected = false;
    for (uint32_t id = 0; is_lost(disk) && id < SLOTS; id++)
        if (ring->pending[id]) {
            finish(ring->pending[id], BLKIF_ERROR);
            ring->pending[id] = NULL;
        }
}

static bool busy(struct device *device)
{
    struct disk *disk = device->data;
    return disk->in_flight;
}

static void detach(struct device *device)
{
    struct disk *disk = device->data;
    disk->device = NULL;
}

const struct driver block_driver = {"vbd", BUS_INITIALISED, attach, connect, connected, disconnect, busy, detach};
