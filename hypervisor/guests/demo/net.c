/* NICs: the network front (public/io/netif.h), one ring each way of one page.
 *
 * Frames are copied out of and into buffers that stay granted while the rings do. No offloads are offered: frames
 * come whole, at most one MTU, with their checksums filled in, unless the back says that it has checked them. */
#include "net.h"

enum { RING = 256, BUFFERS_IN = 32, BUFFERS_OUT = 16 };

struct buffer {
    uint64_t frame;
    uint32_t grant;
    bool busy;
};

struct net_rings {
    struct ring_header *in, *out;
    uint64_t in_frame, out_frame;
    uint32_t in_grant, out_grant, port;
    uint32_t in_producer, in_consumer, out_producer, out_consumer;
    struct buffer in_buffer[BUFFERS_IN], out_buffer[BUFFERS_OUT];
    uint32_t next_out;
};

struct nic nics[NICS];
static struct net_rings rings[NICS];

static void notify_after(struct ring_header *header, uint32_t producer, uint32_t port)
{
    uint32_t before = header->request_producer;
    __atomic_store_n(&header->request_producer, producer, __ATOMIC_SEQ_CST);
    if (producer - __atomic_load_n(&header->request_event, __ATOMIC_SEQ_CST) < producer - before)
        event_send(port);
}

/* Offers a buffer to be filled. */
static void offer(struct net_rings *rings, uint32_t number)
{
    union net_rx_slot *slot = (union net_rx_slot *)(rings->in + 1) + rings->in_producer++ % RING;
    slot->request.id = (uint16_t)number;
    slot->request.pad = 0;
    slot->request.grant = rings->in_buffer[number].grant;
}

/* Takes one answer from the ring. A packet of several answers is dropped: we asked for none. */
static void take_frame(struct nic *nic)
{
    static bool dropping;
    struct net_rings *rings = nic->rings;
    union net_rx_slot slot = ((union net_rx_slot *)(rings->in + 1))[rings->in_consumer++ % RING];
    uint32_t number = slot.response.id, flags = slot.response.flags;
    if (number >= BUFFERS_IN)
        return;
    bool drop = dropping || flags & (NETRX_MORE_DATA | NETRX_EXTRA_INFO) || slot.response.status < ETHERNET ||
                slot.response.offset + slot.response.status > PAGE;
    dropping = flags & NETRX_MORE_DATA;
    if (drop) {
        nic->dropped++;
    } else {
        uint8_t *data = (uint8_t *)frame_address(rings->in_buffer[number].frame) + slot.response.offset;
        nic->received++;
        ip_receive(nic, data, (uint32_t)slot.response.status, flags & (NETRX_DATA_VALIDATED | NETRX_CSUM_BLANK));
    }
    offer(rings, number);
}

static void take_frames(struct nic *nic)
{
    struct net_rings *rings = nic->rings;
    do {
        while (rings->in && rings->in_consumer != __atomic_load_n(&rings->in->response_producer, __ATOMIC_SEQ_CST))
            take_frame(nic);
        __atomic_store_n(&rings->in->response_event, rings->in_consumer + 1, __ATOMIC_SEQ_CST);
    } while (rings->in_consumer != __atomic_load_n(&rings->in->response_producer, __ATOMIC_SEQ_CST));
    notify_after(rings->in, rings->in_producer, rings->port);
}

static void take_sent(struct net_rings *rings)
{
    do {
        for (; rings->out_consumer != __atomic_load_n(&rings->out->response_producer, __ATOMIC_SEQ_CST);
             rings->out_consumer++) {
            union net_tx_slot *slot = (union net_tx_slot *)(rings->out + 1) + rings->out_consumer % RING;
            if (slot->response.id < BUFFERS_OUT)
                rings->out_buffer[slot->response.id].busy = false;
        }
        __atomic_store_n(&rings->out->response_event, rings->out_consumer + 1, __ATOMIC_SEQ_CST);
    } while (rings->out_consumer != __atomic_load_n(&rings->out->response_producer, __ATOMIC_SEQ_CST));
}

static void net_event(void *argument)
{
    struct nic *nic = argument;
    take_sent(nic->rings);
    take_frames(nic);
}

/* Returns room for a frame to be sent, always the same until `net_send`; NULL when there is none now. */
uint8_t *net_buffer(struct nic *nic)
{
    struct net_rings *rings = nic->rings;
    if (!nic->connected)
        return NULL;
    if (rings->out_buffer[rings->next_out].busy)
        take_sent(rings);
    if (rings->out_buffer[rings->next_out].busy) {
        nic->dropped++;
        return NULL;
    }
    return frame_address(rings->out_buffer[rings->next_out].frame);
}

/* Sends what was written to `net_buffer`; short frames are filled up. */
void net_send(struct nic *nic, uint32_t length)
{
    struct net_rings *rings = nic->rings;
    struct buffer *buffer = &rings->out_buffer[rings->next_out];
    if (length < 60) {
        memset((uint8_t *)frame_address(buffer->frame) + length, 0, 60 - length);
        length = 60;
    }
    union net_tx_slot *slot = (union net_tx_slot *)(rings->out + 1) + rings->out_producer++ % RING;
    slot->request.grant = buffer->grant;
    slot->request.offset = slot->request.flags = 0;
    slot->request.id = (uint16_t)rings->next_out;
    slot->request.size = (uint16_t)length;
    buffer->busy = true;
    rings->next_out = (rings->next_out + 1) % BUFFERS_OUT;
    nic->sent++;
    notify_after(rings->out, rings->out_producer, rings->port);
}

static bool read_mac(struct nic *nic)
{
    char text[24];
    if (store_get(text, sizeof text, "%s/mac", nic->device->front) != 17)
        return false;
    for (uint32_t part = 0; part < 6; part++) {
        uint64_t number;
        char hex[5] = {'0', 'x', (char)(text[3 * part] | 0x20), (char)(text[3 * part + 1] | 0x20), 0};
        if (!parse_number(hex, &number))
            return false;
        nic->mac[part] = (uint8_t)number;
    }
    return true;
}

static bool attach(struct device *device)
{
    if (device->number >= NICS || nics[device->number].device)
        return false;
    struct nic *nic = &nics[device->number];
    *nic = (struct nic){.device = device, .rings = &rings[device->number], .station = &stations[device->number]};
    device->data = nic;
    if (read_mac(nic)) {
        nic->mtu = (uint32_t)store_get_number(1500, "%s/mtu", device->front);
        nic->mtu = nic->mtu < 576 || nic->mtu > 1500 ? 1500 : nic->mtu;
        return true;
    }
    nic->device = NULL;
    return false;
}

static struct ring_header *make_ring(uint64_t *frame, uint32_t *reference)
{
    *frame = frame_take();
    struct ring_header *header = frame_address(*frame);
    memset(header, 0, PAGE);
    header->request_event = header->response_event = 1;
    *reference = grant(*frame, false);
    return header;
}

static void make_buffers(struct buffer *buffers, uint32_t count, bool read_only)
{
    for (uint32_t at = 0; at < count; at++) {
        buffers[at].frame = frame_take();
        buffers[at].grant = grant(buffers[at].frame, read_only);
    }
}

static bool put_number(struct device *device, const char *key, uint32_t number)
{
    char text[12];
    format(text, sizeof text, "%u", number);
    return store_put(text, "%s/%s", device->front, key);
}

static bool connect(struct device *device)
{
    struct nic *nic = device->data;
    struct net_rings *rings = nic->rings;
    memset(rings, 0, sizeof *rings);
    rings->in = make_ring(&rings->in_frame, &rings->in_grant);
    rings->out = make_ring(&rings->out_frame, &rings->out_grant);
    make_buffers(rings->in_buffer, BUFFERS_IN, false);
    make_buffers(rings->out_buffer, BUFFERS_OUT, true);
    rings->port = event_allocate(net_event, nic);
    for (uint32_t number = 0; number < BUFFERS_IN; number++)
        offer(rings, number);
    rings->in->request_producer = rings->in_producer;
    return put_number(device, "tx-ring-ref", rings->out_grant) && put_number(device, "rx-ring-ref", rings->in_grant) &&
           put_number(device, "event-channel", rings->port) && put_number(device, "request-rx-copy", 1) &&
           put_number(device, "feature-rx-notify", 1) && put_number(device, "feature-sg", 0) &&
           put_number(device, "feature-gso-tcpv4", 0) && put_number(device, "feature-no-csum-offload", 1);
}

static void connected(struct device *device)
{
    struct nic *nic = device->data;
    if (nic->connected)
        return;
    nic->connected = true;
    event_send(nic->rings->port);
    ip_up(nic);
    settings_look();
}

static void release_buffers(struct buffer *buffers, uint32_t count)
{
    for (uint32_t at = 0; at < count; at++)
        grant_end_and_give(buffers[at].grant, buffers[at].frame);
}

static void disconnect(struct device *device)
{
    struct nic *nic = device->data;
    struct net_rings *rings = nic->rings;
    if (nic->connected)
        ip_down(nic);
    nic->connected = false;
    event_close(rings->port);
    release_buffers(rings->in_buffer, BUFFERS_IN);
    release_buffers(rings->out_buffer, BUFFERS_OUT);
    grant_end_and_give(rings->in_grant, rings->in_frame);
    grant_end_and_give(rings->out_grant, rings->out_frame);
    rings->in = rings->out = NULL;
}

static bool busy(struct device *device)
{
    (void)device;
    return false;
}

static void detach(struct device *device)
{
    struct nic *nic = device->data;
    if (nic->station->address)
        ip_configure(nic->station, 0, 0, 0);
    nic->device = NULL;
}

const struct driver net_driver = {"vif", BUS_CONNECTED, attach, connect, connected, disconnect, busy, detach};
