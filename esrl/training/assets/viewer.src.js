/*!
Plays an episode of rigid links in 3D: reads the JSON in #episode, draws it with three.js, runs the controls.
Bundled with three.js:

The MIT License

Copyright © 2010-2026 three.js authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in
all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN
THE SOFTWARE.
*/
import {
  BackSide, Box3, BoxGeometry, BufferAttribute, BufferGeometry, CanvasTexture, CapsuleGeometry, Color,
  CylinderGeometry, DirectionalLight, DoubleSide, Fog, FrontSide, Group, HemisphereLight, Matrix4, Mesh, MeshBasicMaterial,
  MeshStandardMaterial, NeutralToneMapping, Object3D, PCFShadowMap, PerspectiveCamera, PlaneGeometry, PMREMGenerator,
  Quaternion, RepeatWrapping, Scene, SphereGeometry, SRGBColorSpace, Vector3, WebGLRenderer,
} from 'three';
import { OrbitControls } from 'three/addons/controls/OrbitControls.js';
import { RoomEnvironment } from 'three/addons/environments/RoomEnvironment.js';
import { toCreasedNormals } from 'three/addons/utils/BufferGeometryUtils.js';

const SKY = { horizon: '#e3eaf1', zenith: '#8fb0d3' };
const GROUND = ['#a9b4c0', '#8f9dac'];
const ROBOT = ['#d26332', '#f0b873']; // root link, outermost links
const OBJECT = '#2f8f9d'; // uncoloured links outside the robot's own tree
const STATIC = '#7d8996'; // uncoloured parts of the world
const FOLLOW_SECONDS = 0.3; // width of the smoothing of the camera's path
const PAUSE_AT_END = 1.2; // seconds before an episode starts again
const PLAY = 'M5 3.2v13.6L17 10z', PAUSE = 'M4.5 3h4v14h-4zM11.5 3h4v14h-4z';

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function say(sentence) {
  $('message').textContent = sentence;
  $('message').hidden = false;
  $('bar').hidden = $('readout').hidden = true;
}

function decode(text, Type) {
  return new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

// ---- what the episode holds ------------------------------------------------------------------------------------------

function readEpisode() {
  const episode = JSON.parse($('episode').textContent);
  episode.poses = decode(episode.poses, Float32Array);
  episode.duration = (episode.frames - 1) * episode.dt;
  const roots = episode.parents.map((_, link) => {
    while (episode.parents[link] >= 0) link = episode.parents[link];
    return link;
  });
  const count = (root) => roots.filter((other) => other === root).length;
  episode.root = roots.reduce((best, root) => (count(root) > count(best) ? root : best), roots[0] ?? 0);
  episode.robot = roots.map((root) => root === episode.root);
  episode.depth = episode.parents.map((parent) => {
    let depth = 0;
    for (; parent >= 0; parent = episode.parents[parent]) depth += 1;
    return depth;
  });
  return episode;
}

/** Puts a link where it is at frame `at`, which may lie between two frames; false where a number is not finite. */
function poseOf(episode, link, at, position, turn) {
  const low = clamp(Math.floor(at), 0, episode.frames - 1), high = Math.min(low + 1, episode.frames - 1);
  const a = 7 * (low * episode.links + link), b = 7 * (high * episode.links + link), p = episode.poses;
  for (let i = 0; i < 7; i += 1) if (!Number.isFinite(p[a + i] + p[b + i])) return false;
  position.set(p[a], p[a + 1], p[a + 2]).lerp(new Vector3(p[b], p[b + 1], p[b + 2]), at - low);
  turn.set(p[a + 4], p[a + 5], p[a + 6], p[a + 3]).normalize();
  turn.slerp(new Quaternion(p[b + 4], p[b + 5], p[b + 6], p[b + 3]).normalize(), at - low);
  return true;
}

// ---- shapes ----------------------------------------------------------------------------------------------------------

function meshGeometry({ vertices, faces }) {
  const geometry = new BufferGeometry();
  geometry.setAttribute('position', new BufferAttribute(decode(vertices, Float32Array), 3));
  geometry.setIndex(new BufferAttribute(decode(faces, Uint32Array), 1));
  return toCreasedNormals(geometry, 0.6);
}

function geometryOf(geom, meshes) {
  const [x, y, z] = geom.size, upright = Math.PI / 2;
  switch (geom.shape) {
    case 'sphere': return new SphereGeometry(x, 40, 28);
    case 'capsule': return new CapsuleGeometry(x, 2 * y, 14, 36).rotateX(upright);
    case 'cylinder': return new CylinderGeometry(x, x, 2 * y, 48).rotateX(upright);
    case 'ellipsoid': return new SphereGeometry(1, 48, 32).scale(x, y, z);
    case 'box': return new BoxGeometry(2 * x, 2 * y, 2 * z);
    case 'mesh': return meshGeometry(meshes[geom.mesh]);
    default: return new PlaneGeometry(2 * x || 40, 2 * y || 40);
  }
}

function colourOf(geom, episode) {
  if (geom.rgba) return new Color().setRGB(...geom.rgba.slice(0, 3), SRGBColorSpace);
  if (geom.link < 0) return new Color(STATIC);
  if (!episode.robot[geom.link]) return new Color(OBJECT);
  const deepest = Math.max(1, ...episode.depth.filter((_, link) => episode.robot[link]));
  return new Color(ROBOT[0]).lerp(new Color(ROBOT[1]), episode.depth[geom.link] / deepest);
}

function meshOf(geom, episode) {
  const alpha = geom.rgba ? geom.rgba[3] : 1;
  const material = new MeshStandardMaterial({
    color: colourOf(geom, episode), roughness: 0.42, metalness: 0.02, transparent: alpha < 1, opacity: alpha,
    side: geom.shape === 'plane' ? DoubleSide : FrontSide,
  });
  const mesh = new Mesh(geometryOf(geom, episode.meshes), material);
  mesh.position.set(...geom.pos);
  mesh.quaternion.set(geom.quat[1], geom.quat[2], geom.quat[3], geom.quat[0]);
  mesh.castShadow = alpha > 0.5 && geom.shape !== 'plane';
  mesh.receiveShadow = true;
  return mesh;
}

const isFloor = (geom) => geom.shape === 'plane' && geom.link < 0 && Math.hypot(geom.quat[1], geom.quat[2]) < 1e-3;

/** One group per link, and the world's own geoms; the highest level floor is left to the ground. */
function buildBodies(scene, episode) {
  const links = episode.parents.map(() => scene.add(new Group()).children.at(-1));
  for (const geom of episode.geoms) {
    if (!isFloor(geom)) (geom.link < 0 ? scene : links[geom.link]).add(meshOf(geom, episode));
  }
  return links;
}

// ---- measures: where the robot is, how large it is --------------------------------------------------------------------

/** The corners of every geom's bounding box in its link's frame, per link. */
function cornersOf(links) {
  return links.map((link) => link.children.flatMap((mesh) => {
    mesh.updateMatrix();
    mesh.geometry.computeBoundingBox();
    const { min, max } = mesh.geometry.boundingBox, corners = [];
    for (const x of [min.x, max.x]) for (const y of [min.y, max.y]) for (const z of [min.z, max.z]) {
      corners.push(new Vector3(x, y, z).applyMatrix4(mesh.matrix));
    }
    return corners;
  }));
}

function pointsAt(episode, corners, frame, wanted) {
  const position = new Vector3(), turn = new Quaternion(), one = new Vector3(1, 1, 1), matrix = new Matrix4();
  return corners.flatMap((own, link) => {
    if (!wanted(link) || !poseOf(episode, link, frame, position, turn)) return [];
    matrix.compose(position, turn, one);
    return own.map((corner) => corner.clone().applyMatrix4(matrix));
  });
}

/** Each row of `path` averaged with its neighbours by a bell curve `width` frames wide. */
function smooth(path, width) {
  const reach = Math.ceil(3 * width);
  return path.map((_, frame) => {
    const sum = new Vector3();
    let weights = 0;
    for (let i = Math.max(0, frame - reach); i <= Math.min(path.length - 1, frame + reach); i += 1) {
      const weight = Math.exp(-0.5 * ((i - frame) / width) ** 2);
      sum.addScaledVector(path[i], weight);
      weights += weight;
    }
    return sum.divideScalar(weights);
  });
}

/** The root link's path and the camera's smooth path along it, the robot's size, its shape and the ground's height. */
function measure(episode, links) {
  const corners = cornersOf(links), turn = new Quaternion(), roots = [];
  for (let frame = 0; frame < episode.frames; frame += 1) {
    const root = new Vector3();
    if (episode.links && !poseOf(episode, episode.root, frame, root, turn)) root.copy(roots.at(-1) ?? root);
    roots.push(root);
  }
  const fixed = new Box3().setFromPoints(roots).getSize(new Vector3()).length() < 1e-3;
  const wanted = (link) => fixed || episode.robot[link];
  const boxes = roots.map((root, frame) => {
    const points = pointsAt(episode, corners, frame, wanted);
    return points.length ? new Box3().setFromPoints(points) : new Box3().setFromCenterAndSize(root, new Vector3(1, 1, 1));
  });
  const all = boxes.reduce((sum, box) => sum.union(box), new Box3());
  const first = (fixed ? all : boxes[0]).getCenter(new Vector3()), size = boxes[0].getSize(new Vector3());
  const raw = roots.map((root, frame) => new Vector3(
    root.x + first.x - roots[0].x, root.y + first.y - roots[0].y, boxes[frame].getCenter(new Vector3()).z));
  const path = smooth(raw, Math.max(0.5, FOLLOW_SECONDS / episode.dt));
  const reach = (along) => {
    const each = boxes.map(({ min, max }, frame) => Math.max(along(max, path[frame]), along(min, path[frame])));
    return Math.max(each[0], each.toSorted((a, b) => a - b)[Math.floor(0.7 * (each.length - 1))], 1e-3);
  };
  const wide = reach((a, b) => Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y))), tall = reach((a, b) => Math.abs(a.z - b.z));
  const radius = Math.hypot(wide, tall);
  const floors = episode.geoms.filter(isFloor).map((geom) => geom.pos[2]);
  return {
    roots, path, wide, tall, radius, flatness: size.z / Math.max(size.x, size.y, 1e-6),
    ground: floors.length ? Math.max(...floors) : all.min.z - 0.05 * radius,
    spread: Math.max(...roots.map((root) => Math.hypot(root.x - roots[0].x, root.y - roots[0].y))),
  };
}

// ---- the stage -------------------------------------------------------------------------------------------------------

/** A length of 1, 2 or 5 times a power of ten near the one given. */
function roundLength(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return power * [1, 2, 5, 10].reduce((a, b) => (Math.abs(b - length / power) < Math.abs(a - length / power) ? b : a));
}

function checkers(renderer, repeat) {
  const canvas = document.createElement('canvas'), side = 256;
  canvas.width = canvas.height = 2 * side;
  const pen = canvas.getContext('2d');
  for (const [x, y] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
    pen.fillStyle = GROUND[(x + y) % 2];
    pen.fillRect(x * side, y * side, side, side);
    pen.strokeStyle = 'rgba(255, 255, 255, .35)';
    pen.lineWidth = 3;
    pen.strokeRect(x * side, y * side, side, side);
  }
  const texture = new CanvasTexture(canvas);
  texture.wrapS = texture.wrapT = RepeatWrapping;
  texture.repeat.set(repeat, repeat);
  texture.colorSpace = SRGBColorSpace;
  texture.anisotropy = renderer.capabilities.getMaxAnisotropy();
  return texture;
}

/** The ground, whose tiles stay put while the plane itself moves along under the robot. */
function addGround(scene, renderer, { radius, ground }) {
  const tile = roundLength(0.6 * radius), period = 2 * tile, tiles = 200;
  const material = new MeshStandardMaterial({ map: checkers(renderer, tiles), roughness: 0.95, envMapIntensity: 0.6 });
  const floor = scene.add(new Mesh(new PlaneGeometry(period * tiles, period * tiles), material)).children.at(-1);
  floor.receiveShadow = true;
  return (centre) => {
    floor.position.set(Math.round(centre.x / period) * period, Math.round(centre.y / period) * period, ground);
  };
}

function addSky(scene) {
  const geometry = new SphereGeometry(1, 32, 48).rotateX(Math.PI / 2), { position } = geometry.attributes;
  const colours = new Float32Array(3 * position.count), colour = new Color();
  for (let i = 0; i < position.count; i += 1) {
    const height = clamp(position.getZ(i), 0, 1);
    colour.set(SKY.horizon).lerp(new Color(SKY.zenith), height ** 0.75).toArray(colours, 3 * i);
  }
  geometry.setAttribute('color', new BufferAttribute(colours, 3));
  const material = new MeshBasicMaterial({
    vertexColors: true, side: BackSide, fog: false, depthWrite: false, toneMapped: false,
  });
  const sky = scene.add(new Mesh(geometry, material)).children.at(-1);
  sky.renderOrder = -1;
  return (camera) => sky.position.copy(camera.position) && sky.scale.setScalar(camera.far * 0.5);
}

/** Sun, sky light and reflections; the sun's shadow box moves in coarse steps so that edges do not crawl. */
function addLights(scene, renderer, { radius, ground }) {
  scene.environment = new PMREMGenerator(renderer).fromScene(new RoomEnvironment(), 0.04).texture;
  scene.environmentRotation.set(Math.PI / 2, 0, 0);
  scene.environmentIntensity = 0.35;
  scene.add(new HemisphereLight('#f3f7ff', '#c2b8ad', 0.9));
  const sun = new DirectionalLight('#fff0dc', 2.4), rim = new DirectionalLight('#cfe2ff', 0.7);
  const away = new Vector3(-0.75, -0.5, 1.2).normalize().multiplyScalar(8 * radius);
  sun.castShadow = true;
  sun.shadow.mapSize.set(2048, 2048);
  sun.shadow.radius = 5;
  sun.shadow.normalBias = 0.006 * radius;
  const half = 2.4 * radius;
  Object.assign(sun.shadow.camera, { near: 0.1 * radius, far: 20 * radius, left: -half, right: half, bottom: -half, top: half });
  rim.position.set(0.6, 0.9, 0.5);
  scene.add(sun, sun.target, rim);
  return (centre) => {
    const step = 0.5 * radius;
    sun.target.position.set(Math.round(centre.x / step) * step, Math.round(centre.y / step) * step, ground);
    sun.position.copy(sun.target.position).add(away);
  };
}

function makeRenderer() {
  const renderer = new WebGLRenderer({ antialias: true, powerPreference: 'high-performance' });
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  renderer.toneMapping = NeutralToneMapping;
  renderer.shadowMap.enabled = true;
  renderer.shadowMap.type = PCFShadowMap;
  document.body.prepend(renderer.domElement);
  return renderer;
}

/** Camera and mouse; `fit` frames the robot, `move` carries the view along the path when following. */
function makeView(renderer, measures, follow) {
  const camera = new PerspectiveCamera(32, 1, 0.02 * measures.radius, 400 * measures.radius);
  const controls = new OrbitControls(camera, renderer.domElement);
  Object.assign(controls, {
    enableDamping: true, dampingFactor: 0.12, screenSpacePanning: false, maxPolarAngle: 1.54,
    minDistance: 0.8 * measures.radius, maxDistance: 40 * measures.radius,
  });
  const view = { camera, controls, follow, homing: false };
  const lift = clamp(0.17 + 0.7 * Math.max(0, 1 - measures.flatness) ** 2, 0.17, 0.9);
  const direction = new Vector3(0.42 * Math.cos(lift), -0.91 * Math.cos(lift), Math.sin(lift)).normalize();
  const last = new Vector3();
  view.fit = (centre, free) => {
    const { wide, tall } = measures, half = Math.tan((camera.fov * Math.PI) / 360);
    const across = wide / (half * camera.aspect), upright = (tall * Math.cos(lift) + 0.7 * wide * Math.sin(lift)) / (half * free);
    controls.target.copy(centre);
    camera.position.copy(centre).addScaledVector(direction, 1.08 * Math.max(across, upright) + 0.2 * wide);
    last.copy(centre);
    view.homing = false;
    controls.update();
  };
  view.move = (centre, seconds) => {
    const goal = new Vector3().subVectors(centre, last);
    if (view.homing) {
      const gap = new Vector3().subVectors(last, controls.target);
      goal.addScaledVector(gap, 1 - Math.exp(-5 * seconds));
      view.homing = gap.length() > 1e-3 * measures.radius;
    }
    last.copy(centre);
    if (!view.follow) return false;
    controls.target.add(goal);
    camera.position.add(goal);
    return view.homing;
  };
  return view;
}

// ---- the page --------------------------------------------------------------------------------------------------------

function drawRewards(rewards) {
  const bins = Math.min(rewards.length, 400), values = new Array(bins).fill(0), counts = new Array(bins).fill(0);
  rewards.forEach((reward, frame) => {
    if (reward === null) return;
    const bin = Math.floor((frame * bins) / rewards.length);
    values[bin] += reward;
    counts[bin] += 1;
  });
  const known = values.flatMap((value, bin) => (counts[bin] ? [[bin, value / counts[bin]]] : []));
  const means = known.map(([, mean]) => mean), low = Math.min(0, ...means), high = Math.max(0, ...means), span = high - low || 1;
  const y = (mean) => ((100 * (high - mean)) / span).toFixed(1);
  const x = (bin) => ((1000 * bin) / Math.max(1, bins - 1)).toFixed(1);
  const line = known.map(([bin, mean]) => `L${x(bin)} ${y(mean)}`).join('');
  const outline = (name, path) => $('chart').querySelector(name).setAttribute('d', path);
  outline('.axis', `M0 ${y(0)}H1000`);
  outline('.area', `M${x(known[0]?.[0] ?? 0)} ${y(0)}${line}L1000 ${y(0)}Z`);
  outline('.curve', line.replace('L', 'M'));
  $('chart').hidden = false;
}

function makeReadout(episode, measures) {
  const returns = [];
  if (episode.rewards) {
    episode.rewards.reduce((sum, reward, frame) => (returns[frame] = sum + (reward ?? 0)), 0);
    drawRewards(episode.rewards);
    $('reward').parentElement.hidden = $('return').parentElement.hidden = false;
  }
  const moves = measures.spread > measures.radius;
  $('travelled').parentElement.hidden = !moves;
  const start = measures.roots[0], playhead = $('chart').querySelector('line');
  return (time) => {
    const frame = clamp(Math.floor(time / episode.dt + 1e-6), 0, episode.frames - 1);
    $('time').textContent = `${time.toFixed(2)} s`;
    $('slider').value = time;
    $('slider').setAttribute('aria-valuetext', `${time.toFixed(2)} seconds`);
    if (moves) $('travelled').textContent = `${measures.roots[frame].clone().sub(start).setZ(0).length().toFixed(1)} m`;
    if (!episode.rewards) return;
    $('reward').textContent = episode.rewards[frame]?.toFixed(2) ?? '–';
    $('return').textContent = returns[frame].toFixed(1);
    for (const end of ['x1', 'x2']) playhead.setAttribute(end, episode.duration ? (1000 * time) / episode.duration : 0);
  };
}

function askedFor() {
  const asked = new URLSearchParams(`${location.search.slice(1)}&${location.hash.slice(1)}`);
  const number = (name, otherwise) => (Number.isFinite(parseFloat(asked.get(name))) ? parseFloat(asked.get(name)) : otherwise);
  const still = window.matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : 1;
  return { t: number('t', 0), play: number('play', still) !== 0, follow: number('follow', 1) !== 0, speed: number('speed', 1) };
}

function bindControls(player, view, episode, recentre) {
  $('slider').max = episode.duration;
  $('slider').addEventListener('input', () => player.seek(parseFloat($('slider').value)));
  $('play').addEventListener('click', () => player.play(!player.playing));
  $('speed').addEventListener('change', () => (player.speed = parseFloat($('speed').value)));
  $('home').addEventListener('click', recentre);
  const setFollow = (on) => {
    view.follow = view.homing = on;
    player.dirty = true;
    $('follow').setAttribute('aria-pressed', on);
  };
  setFollow(view.follow);
  $('follow').addEventListener('click', () => setFollow(!view.follow));
  document.addEventListener('click', (event) => event.detail > 0 && event.target.closest('button')?.blur());
  const step = (frames) => {
    player.play(false);
    player.seek((Math.round(player.time / episode.dt) + frames) * episode.dt);
  };
  const keys = {
    ' ': () => player.play(!player.playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    f: () => setFollow(!view.follow), r: recentre,
  };
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key] || event.target.closest('select')) return;
    if (event.key === ' ' && event.target.closest('button')) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function makePlayer(episode, asked) {
  const player = { time: 0, playing: false, speed: 1, waited: 0, dirty: true };
  player.seek = (time) => Object.assign(player, { time: clamp(time, 0, episode.duration), waited: 0, dirty: true });
  player.play = (on) => {
    player.playing = on && episode.frames > 1;
    if (player.playing && player.time >= episode.duration) player.seek(0);
    $('play').querySelector('path').setAttribute('d', player.playing ? PAUSE : PLAY);
    $('play').setAttribute('aria-label', player.playing ? 'Pause' : 'Play');
  };
  player.advance = (seconds) => {
    if (!player.playing) return;
    player.dirty = true;
    if (player.time < episode.duration) player.time = Math.min(player.time + seconds * player.speed, episode.duration);
    else if ((player.waited += seconds) > PAUSE_AT_END) player.seek(0);
  };
  const choice = [...$('speed').options].find((option) => parseFloat(option.value) === asked.speed);
  if (choice) player.speed = parseFloat(($('speed').value = choice.value));
  player.seek(asked.t);
  player.play(asked.play);
  return player;
}

/** The scene of an episode; `place` poses the links at a time and brings ground, sky, fog and light along. */
function makeStage(renderer, episode) {
  const scene = new Scene(), links = buildBodies(scene, episode), measures = measure(episode, links);
  const ground = addGround(scene, renderer, measures), sky = addSky(scene), lights = addLights(scene, renderer, measures);
  scene.fog = new Fog(SKY.horizon, 1, 2);
  const centreAt = (time) => {
    const at = time / episode.dt, low = clamp(Math.floor(at), 0, episode.frames - 1);
    return measures.path[low].clone().lerp(measures.path[Math.min(low + 1, episode.frames - 1)], at - low);
  };
  const place = (time, { camera, controls }) => {
    links.forEach((link, i) => (link.visible = poseOf(episode, i, time / episode.dt, link.position, link.quaternion)));
    const distance = camera.position.distanceTo(controls.target);
    Object.assign(scene.fog, { near: 1.3 * distance, far: 7 * distance + 6 * measures.radius });
    ground(controls.target);
    sky(camera);
    lights(centreAt(time));
  };
  return { scene, measures, centreAt, place };
}

/** Fills the window, the robot in the middle of what heading and controls leave free; that part of the height. */
function resize(renderer, camera) {
  const { innerWidth: width, innerHeight: height } = window;
  renderer.setSize(width, height, false);
  camera.aspect = width / height;
  const top = $('heading').getBoundingClientRect().bottom, bottom = $('bar').getBoundingClientRect().top;
  camera.setViewOffset(width, height, 0, (height - bottom - top) / 2, width, height);
  return Math.max(0.3, (bottom - top) / height);
}

function start(renderer) {
  Object3D.DEFAULT_UP.set(0, 0, 1);
  const episode = readEpisode(), asked = askedFor();
  const stage = makeStage(renderer, episode), player = makePlayer(episode, asked);
  const view = makeView(renderer, stage.measures, asked.follow), readout = makeReadout(episode, stage.measures);
  let free = 1, touched = false;
  const recentre = () => {
    view.fit(stage.centreAt(player.time), free);
    touched = false;
    player.dirty = true;
  };
  const onResize = () => {
    free = resize(renderer, view.camera);
    player.dirty = true;
    if (!touched) recentre();
  };
  onResize();
  bindControls(player, view, episode, recentre);
  window.addEventListener('resize', onResize);
  view.controls.addEventListener('start', () => (touched = true));
  view.controls.addEventListener('change', () => (player.dirty = true));
  let before = performance.now();
  renderer.setAnimationLoop((now) => {
    const seconds = clamp((now - before) / 1000, 0, 0.25);
    before = now;
    player.advance(seconds);
    if (view.move(stage.centreAt(player.time), seconds)) player.dirty = true;
    view.controls.update();
    if (!player.dirty) return;
    player.dirty = false;
    stage.place(player.time, view);
    readout(player.time);
    renderer.render(stage.scene, view.camera);
  });
}

let renderer;
try {
  renderer = makeRenderer();
} catch {
  say('This page draws with WebGL, which this browser or device does not offer; '
    + 'open it in another browser or turn on hardware acceleration.');
}
if (renderer) {
  try {
    start(renderer);
  } catch (problem) {
    say(`The episode cannot be shown: ${problem.message}`);
    throw problem;
  }
}
