/* Ethernet, ARP and IPv4: one address a NIC, no fragments, no routing. */
#include "net.h"

enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, ARP_LENGTH = 28, ARP_REQUEST = 1, ARP_REPLY = 2 };
enum { NEIGHBOUR_SECONDS = 60, TRIES = 3, TRY_MS = 300 };

struct station stations[NICS];
static const uint8_t every_mac[6] = {255, 255, 255, 255, 255, 255};

void ip_up(struct nic *nic)
{
    struct station *station = nic->station;
    uint32_t index = (uint32_t)(nic - nics);
    if (station->nic != nic || !station->address)
        *station = (struct station){.nic = nic, .index = index, .dhcp.timer.next = station->dhcp.timer.next};
    if (station->fixed)
        ip_configure(station, station->address, station->mask, station->gateway);
    else
        dhcp_start(station);
}

void ip_down(struct nic *nic)
{
    memset(nic->station->neighbours, 0, sizeof nic->station->neighbours);
    dhcp_stop(nic->station);
}

uint16_t checksum(const uint8_t *data, uint32_t length, uint32_t sum)
{
    for (uint32_t at = 0; at + 1 < length; at += 2)
        sum += get16(data + at);
    if (length & 1)
        sum += (uint32_t)data[length - 1] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)~sum;
}

static uint8_t *ethernet(struct station *station, const uint8_t *mac, uint32_t type)
{
    uint8_t *frame = net_buffer(station->nic);
    if (frame) {
        memcpy(frame, mac, 6);
        memcpy(frame + 6, station->nic->mac, 6);
        put16(frame + 12, type);
    }
    return frame;
}

/* ARP (RFC 826) */

static void send_arp(struct station *station, uint32_t operation, const uint8_t *mac, uint32_t address)
{
    uint8_t *frame = ethernet(station, mac, TYPE_ARP);
    if (!frame)
        return;
    uint8_t *arp = frame + ETHERNET;
    put32(arp, 0x00010800);
    put16(arp + 4, 0x0604);
    put16(arp + 6, operation);
    memcpy(arp + 8, station->nic->mac, 6);
    put32(arp + 14, station->address);
    memcpy(arp + 18, operation == ARP_REPLY ? mac : (const uint8_t[6]){0}, 6);
    put32(arp + 24, address);
    net_send(station->nic, ETHERNET + ARP_LENGTH);
}

static struct neighbour *neighbour_at(struct station *station, uint32_t address)
{
    for (uint32_t at = 0; at < COUNT_OF(station->neighbours); at++)
        if (station->neighbours[at].until && station->neighbours[at].address == address)
            return &station->neighbours[at];
    return NULL;
}

static void learn(struct station *station, uint32_t address, const uint8_t *mac)
{
    struct neighbour *place = neighbour_at(station, address);
    for (uint32_t at = 0; !place && at < COUNT_OF(station->neighbours); at++)
        if (station->neighbours[at].until <= now())
            place = &station->neighbours[at];
    if (!place)
        place = &station->neighbours[address % COUNT_OF(station->neighbours)];
    place->address = address;
    memcpy(place->mac, mac, 6);
    place->until = now() + NEIGHBOUR_SECONDS * NANOSECONDS;
}

static void arp_receive(struct station *station, const uint8_t *arp, uint32_t length)
{
    if (length < ARP_LENGTH || get32(arp) != 0x00010800 || get16(arp + 4) != 0x0604 || !station->address)
        return;
    bool for_us = get32(arp + 24) == station->address;
    uint32_t sender = get32(arp + 14);
    if (sender && (for_us || neighbour_at(station, sender)))
        learn(station, sender, arp + 8);
    if (for_us && get16(arp + 6) == ARP_REQUEST)
        send_arp(station, ARP_REPLY, arp + 8, sender);
}

struct question {
    struct station *station;
    uint32_t address;
};

static bool is_known(void *argument)
{
    struct question *question = argument;
    struct neighbour *neighbour = neighbour_at(question->station, question->address);
    return neighbour && neighbour->until > now();
}

/* Finds the MAC that packets to an address go to: its own, or the gateway's. Asks and waits if need be. */
bool neighbour_find(struct station *station, uint32_t address, uint8_t *mac)
{
    bool near = !((address ^ station->address) & station->mask);
    struct question question = {station, near ? address : station->gateway};
    for (int tries = 0; question.address && tries < TRIES && !is_known(&question) && !interrupted; tries++) {
        send_arp(station, ARP_REQUEST, every_mac, question.address);
        wait_for(is_known, &question, TRY_MS * MILLISECONDS);
    }
    if (!question.address || !is_known(&question))
        return false;
    memcpy(mac, neighbour_at(station, question.address)->mac, 6);
    return true;
}

/* IPv4 (RFC 791) */

/* Returns where the payload of a packet goes that `ip_send` will send; NULL when there is no room. */
uint8_t *ip_begin(struct station *station)
{
    uint8_t *frame = net_buffer(station->nic);
    return frame ? frame + ETHERNET + IPV4 : NULL;
}

/* Sends the payload of so many bytes; `mac` NULL is everybody's. */
void ip_send(struct station *station, const uint8_t *mac, uint32_t to, uint8_t protocol, uint32_t length)
{
    uint8_t *frame = ethernet(station, mac ? mac : every_mac, TYPE_IPV4);
    if (!frame)
        return;
    uint8_t *header = frame + ETHERNET;
    put16(header, 0x4500);
    put16(header + 2, IPV4 + length);
    put16(header + 4, station->identifier++);
    put16(header + 6, 0x4000); /* do not fragment */
    put16(header + 8, 64u << 8 | protocol);
    put16(header + 10, 0);
    put32(header + 12, station->address);
    put32(header + 16, to);
    put16(header + 10, checksum(header, IPV4, 0));
    net_send(station->nic, ETHERNET + IPV4 + length);
}

static bool is_ours(struct station *station, uint32_t address)
{
    return address == BROADCAST || !station->address || address == station->address ||
           address == (station->address | ~station->mask);
}

static void ipv4_receive(struct station *station, const uint8_t *mac, const uint8_t *header, uint32_t length,
                         bool checked)
{
    if (length < IPV4 || header[0] != 0x45 || get16(header + 2) < IPV4 || get16(header + 2) > length)
        return;
    if (get16(header + 6) & 0x3FFF || checksum(header, IPV4, 0)) /* a fragment; or damaged */
        return;
    struct packet packet = {station, mac, get32(header + 12), get32(header + 16), header + IPV4,
                            get16(header + 2) - IPV4};
    if (!is_ours(station, packet.destination))
        return;
    if (header[9] == PROTOCOL_ICMP)
        icmp_receive(&packet);
    else if (header[9] == PROTOCOL_UDP)
        udp_receive(&packet, checked);
}

/* Takes a frame; `checked`: the checksums of what is in it need no look. */
void ip_receive(struct nic *nic, const uint8_t *frame, uint32_t length, bool checked)
{
    struct station *station = nic->station;
    if (station->nic != nic || (!(frame[0] & 1) && memcmp(frame, nic->mac, 6)))
        return;
    if (get16(frame + 12) == TYPE_ARP)
        arp_receive(station, frame + ETHERNET, length - ETHERNET);
    else if (get16(frame + 12) == TYPE_IPV4)
        ipv4_receive(station, frame + 6, frame + ETHERNET, length - ETHERNET, checked);
}

/* Gives a NIC its address (0 takes it away), and lets neighbours and the toolstack know. */
void ip_configure(struct station *station, uint32_t address, uint32_t mask, uint32_t gateway)
{
    station->address = address;
    station->mask = mask;
    station->gateway = gateway;
    if (address)
        send_arp(station, ARP_REQUEST, every_mac, address);
    metrics_address(station);
}

/* Returns the NIC by which an address is reached; NULL for none. */
struct station *station_for(uint32_t address)
{
    struct station *router = NULL;
    for (uint32_t at = 0; at < NICS; at++) {
        struct station *station = &stations[at];
        if (!station->nic || !station->nic->connected || !station->address)
            continue;
        if (!((address ^ station->address) & station->mask))
            return station;
        if (station->gateway && !router)
            router = station;
    }
    return router;
}

void print_address(uint32_t address)
{
    print("%u.%u.%u.%u", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255);
}
