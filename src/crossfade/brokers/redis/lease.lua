#!lua flags=allow-oom
-- Renews one member's lease and shares the lanes of a route among the members that are alive.
--
-- KEYS[1]  hash  leases of the route:
--            m:<instance>  "<nonce> <expires at, ms since the epoch>"
--            l:<lane>      instance that works on the lane
-- ARGV[1]  msgpack: {what, instance, nonce, ttl_ms, lanes, released}
--            what      "join" (take over the name), "renew" or "leave"
--            lanes     how many lanes there are
--            released  lanes that this member works on no longer
--
-- A lane changes hands only when its owner has let it go or is dead, so that two members do not fence each other in turn.
-- The lease decides who should work; who may write is decided by claims alone.
--
-- Behind a failover the server's clock may be back by any time. A lease that ends later than one of now could is cut to
-- one of now: a living member renews it meanwhile, a dead one is not waited for as long as the clocks differ.
--
-- Returns {"FENCED"} | {"OK", {lanes owned}, {lanes that others wait for}}
local leases = KEYS[1]
local ask = cmsgpack.unpack(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Read members and owners; forget the dead.
local alive, owners = {}, {}
local found = redis.call('HGETALL', leases)
for i = 1, #found, 2 do
  local kind, name = string.sub(found[i], 1, 2), string.sub(found[i], 3)
  if kind == 'm:' then
    local nonce, expires = string.match(found[i + 1], '^(%S+) (%d+)$')
    if tonumber(expires) > now + 2 * ask.ttl_ms then
      expires = string.format('%.0f', now + ask.ttl_ms)
      redis.call('HSET', leases, found[i], nonce .. ' ' .. expires)
    end
    if tonumber(expires) > now then alive[name] = nonce else redis.call('HDEL', leases, found[i]) end
  else
    owners[tonumber(name)] = found[i + 1]
  end
end

-- Refuse a member whose name was taken over.
local me = ask.instance
if ask.what ~= 'join' and alive[me] and alive[me] ~= ask.nonce then return {'FENCED'} end

-- Let go of lanes.
for _, lane in ipairs(ask.released) do
  if owners[lane] == me then
    redis.call('HDEL', leases, 'l:' .. lane)
    owners[lane] = nil
  end
end
if ask.what == 'leave' then
  for lane, owner in pairs(owners) do
    if owner == me then redis.call('HDEL', leases, 'l:' .. lane) end
  end
  redis.call('HDEL', leases, 'm:' .. me)
  return {'OK', {}, {}}
end

-- Renew the lease.
alive[me] = ask.nonce
redis.call('HSET', leases, 'm:' .. me, ask.nonce .. ' ' .. string.format('%.0f', now + ask.ttl_ms))

-- Share the lanes out in the order of names; take what is free.
local names = {}
for name in pairs(alive) do names[#names + 1] = name end
table.sort(names)
local owned, awaited = {}, {}
for lane = 0, ask.lanes - 1 do
  local should = names[lane % #names + 1]
  local owner = owners[lane]
  if should == me and (not owner or not alive[owner]) then
    redis.call('HSET', leases, 'l:' .. lane, me)
    owner = me
  end
  if owner == me then
    owned[#owned + 1] = lane
    if should ~= me then awaited[#awaited + 1] = lane end
  end
end
return {'OK', owned, awaited}
